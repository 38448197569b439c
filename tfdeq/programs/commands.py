"""The programs of tfdeq: what a user types to run them, and what a process runs.

In a clone the programs are the modules of trainers/ and export/. An installation keeps these folders
inside `tfdeq.programs`, so that it claims one top-level name, and gives each program a console script.
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable

# The console scripts of `pyproject.toml`: program, as a module of a clone -> script.
SCRIPTS = {
    "trainers.language_model": "tfdeq-language-model",
    "trainers.copy_memory": "tfdeq-copy-memory",
    "trainers.reasoning": "tfdeq-reasoning",
    "trainers.image_classifier": "tfdeq-image-classifier",
    "trainers.overlap": "tfdeq-overlap",
    "trainers.report": "tfdeq-report",
    "export.saved_model": "tfdeq-export",
    "export.verify": "tfdeq-verify",
    "export.serving_config": "tfdeq-serving-config",
    "export.client": "tfdeq-client",
    "export.load_test": "tfdeq-load-test",
    "export.serving_program": "tfdeq-serving-program",
}

_HERE = os.path.dirname(os.path.abspath(__file__))
_INSTALLED = os.path.isdir(os.path.join(_HERE, "trainers"))
# The folder that a process must have on its path to run what `module_of` names.
ROOT = os.path.dirname(os.path.dirname(_HERE))
PRESETS = os.path.join(_HERE if _INSTALLED else ROOT, "trainers", "presets")


def module_of(program: str) -> str:
    """Returns what `python -m` is to run, with `ROOT` on its path, for example for "trainers.report"."""
    return f"tfdeq.programs.{program}" if _INSTALLED and program in SCRIPTS else program


def command(program: str) -> str:
    """Returns what a user types to run a program.

    That is this very Python with -m, or the console script where tfdeq is installed.

    Raises:
        KeyError: no such program.
    """
    script = SCRIPTS[program]
    if _INSTALLED:
        return script
    python = os.path.relpath(sys.executable)
    return f"{sys.executable if python.startswith('..') else python} -m {program}"


def _run(program: str) -> None:
    importlib.import_module(f"tfdeq.programs.{program}").run()


def __getattr__(name: str) -> Callable[[], None]:
    """The console scripts' entry points, `export_saved_model` for "export.saved_model"."""
    for program in SCRIPTS:
        if program.replace(".", "_") == name:
            return functools.partial(_run, program)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
