"""The programs of tfdeq: the commands that users type, and the modules that processes run.

In a clone the programs are the modules of trainers/ and export/. An installation has these folders
inside `tfdeq.programs`, so that it uses only one top-level name, and a console script for each program.
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable

# The console scripts of `pyproject.toml`: program, as a module in a clone -> script.
SCRIPTS = {
    "trainers.language_model": "tfdeq-language-model",
    "trainers.copy_memory": "tfdeq-copy-memory",
    "trainers.reasoning": "tfdeq-reasoning",
    "trainers.image_classifier": "tfdeq-image-classifier",
    "trainers.segmentation": "tfdeq-segmentation",
    "trainers.overlap": "tfdeq-overlap",
    "trainers.report": "tfdeq-report",
    "export.saved_model": "tfdeq-export",
    "export.verify": "tfdeq-verify",
    "export.preset": "tfdeq-preset",
    "export.serving_config": "tfdeq-serving-config",
    "export.client": "tfdeq-client",
    "export.load_test": "tfdeq-load-test",
    "export.serving_program": "tfdeq-serving-program",
}

_HERE = os.path.dirname(os.path.abspath(__file__))
_INSTALLED = os.path.isdir(os.path.join(_HERE, "trainers"))
# The folder that a process needs on its path to run a module from `module_of`.
ROOT = os.path.dirname(os.path.dirname(_HERE))
PRESETS = os.path.join(_HERE if _INSTALLED else ROOT, "trainers", "presets")


def module_of(program: str) -> str:
    """Returns the module for `python -m`, with `ROOT` on the path, for example for "trainers.report"."""
    return f"tfdeq.programs.{program}" if _INSTALLED and program in SCRIPTS else program


def command(program: str) -> str:
    """Returns the command that a user types to run a program.

    That is the running Python with -m, or the console script if tfdeq is installed.

    Raises:
        KeyError: if there is no such program.
    """
    script = SCRIPTS[program]
    if _INSTALLED:
        return script
    python = os.path.relpath(sys.executable)
    return f"{sys.executable if python.startswith('..') else python} -m {program}"


def _run(program: str) -> None:
    importlib.import_module(f"tfdeq.programs.{program}").run()


def __getattr__(name: str) -> Callable[[], None]:
    """Returns a console script's entry point, such as `export_saved_model` for "export.saved_model"."""
    for program in SCRIPTS:
        if program.replace(".", "_") == name:
            return functools.partial(_run, program)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
