"""A folder that takes long to fill, filled once for all workers of a test run."""

import fcntl
import os
import pathlib
import shutil
from collections.abc import Callable

import pytest


def shared_folder(
    factory: pytest.TempPathFactory, name: str, fill: Callable[[pathlib.Path], object]
) -> pathlib.Path:
    """Returns a folder of this run, filled by whichever process asks for it first.

    The others wait meanwhile. It is for reading: whoever changes something copies it.

    Args:
        factory: the fixture `tmp_path_factory`.
        name: of the folder; one for each `fill`.
        fill: (the empty folder) -> anything; called again by the next one who asks, if it raises.
    """
    own = factory.getbasetemp()
    # What pytest-xdist gives its workers lies side by side.
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
