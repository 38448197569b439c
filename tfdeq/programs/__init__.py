"""Console scripts of an installed tfdeq.

An installation keeps the folders trainers/ and export/ inside this package, so that no generic
top-level names appear in a user's environment; a script puts this folder first on its own path.
"""

import importlib
import os
import sys


def _run(module: str) -> None:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    importlib.import_module(module).run()


def train_language_model() -> None:
    _run("trainers.language_model")


def train_copy_memory() -> None:
    _run("trainers.copy_memory")


def report() -> None:
    _run("trainers.report")


def export_saved_model() -> None:
    _run("export.saved_model")


def verify_saved_model() -> None:
    _run("export.verify")


def write_serving_config() -> None:
    _run("export.serving_config")


def ask_server() -> None:
    _run("export.client")


def load_test() -> None:
    _run("export.load_test")


def time_in_cpp() -> None:
    _run("export.serving_program")
