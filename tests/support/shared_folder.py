"""A folder that takes long to fill, and is filled once for all workers of a test run."""

import fcntl
import os
import pathlib
import shutil
from collections.abc import Callable

import pytest


def shared_folder(
    factory: pytest.TempPathFactory, name: str, fill: Callable[[pathlib.Path], object]
) -> pathlib.Path:
    """Returns a folder of this run, filled by the first process that needs it.

    The others wait for it. The folder is read-only: copy it to change something.

    Args:
        factory: the fixture `tmp_path_factory`.
        name: name of the folder; one for each `fill`.
        fill: (the empty folder) -> anything; if it raises an error, the next process calls it again.
    """
    own = factory.getbasetemp()
    # The folders of pytest-xdist's workers have the same parent.
    run = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with open(run / f"{name}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run / f"{name}.done"
        folder = run / name
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            fill(folder)
            done.touch()
    return folder
