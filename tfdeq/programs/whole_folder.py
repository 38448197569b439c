"""A folder written whole or not at all: under a temporary name, flushed to the disk, then renamed."""

import ctypes
import errno
import fcntl
import glob
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable

from tfdeq.programs.paths import expanded
from tfdeq.programs.workdir import writing

# A younger temporary folder may belong to a writer that has not locked it yet.
_ABANDONED_AFTER_SECONDS = 60.0
_HERE, _NO_REPLACE, _EXCHANGE = -100, 1, 2  # AT_FDCWD, RENAME_NOREPLACE, RENAME_EXCHANGE


def write_whole(
    path: str | os.PathLike, write: Callable[[pathlib.Path], None], replace: bool = False
) -> pathlib.Path:
    """Writes a folder so that a reader sees all of it, or what was there before.

    A writer that fails leaves nothing. What a killed one left is removed by the next call for this path.

    Args:
        path: of the folder; the folders above it are made if they are missing.
        write: called as write(folder) with an empty folder to fill.
        replace: whether the new folder takes the place of one that is there. Without it only an empty
            folder is replaced.

    Returns:
        The path.

    Raises:
        FileExistsError: there is something at the path; it was not changed.
        OSError: what keeps it from being written, as one line.
    """
    path = expanded(path)
    with writing(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".partial-{path.name}-"
    remove_abandoned(path.parent, f"{glob.escape(prefix)}*")
    with writing(str(path)):
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        lock(descriptor)
        open_to_others(temporary)
        write(temporary)
        flush_tree(temporary)
        _put_in_place(temporary, path, replace)
        flush(path.parent)
    finally:
        # After a rename nothing is here; after an exchange what was replaced is.
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(descriptor)
    return path


def _put_in_place(temporary: pathlib.Path, path: pathlib.Path, replace: bool) -> None:
    try:
        if replace and path.is_dir():
            _exchange(temporary, path)
        else:
            os.rename(temporary, path)  # replaces nothing but an empty folder
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(
                f"{str(path)!r} is there already. Nothing was changed. Name another folder, or remove it."
            ) from error
        with writing(str(path)):
            raise


def _exchange(temporary: pathlib.Path, path: pathlib.Path) -> None:
    """Puts a folder in the place of another, which gets its name."""
    if _renamed(temporary, path, _EXCHANGE):
        return
    # No exchange on this system: for a moment there is no folder, but never half of one.
    aside = temporary.with_name(f"{temporary.name}-new")
    os.rename(temporary, aside)
    os.rename(path, temporary)
    os.rename(aside, path)


def rename_to_free_name(source: pathlib.Path, target: pathlib.Path) -> bool:
    """Renames by Linux's renameat2 with RENAME_NOREPLACE; returns False where there is no such call.

    Raises:
        OSError: the name is taken, or what else keeps it from being renamed.
    """
    return _renamed(source, target, _NO_REPLACE)


def _renamed(source: pathlib.Path, target: pathlib.Path, flag: int) -> bool:
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_HERE, os.fsencode(source), _HERE, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL):  # not in this kernel, or not on this file system
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))


def flush_tree(folder: pathlib.Path) -> None:
    """Flushes a folder and all in it to the disk."""
    with writing(str(folder.parent)):  # some file systems say only here that they are full
        for parent, _, files in os.walk(folder, topdown=False):
            for name in files:
                flush(pathlib.Path(parent, name))
            flush(pathlib.Path(parent))


def flush(path: pathlib.Path) -> None:
    """Flushes one file, or the names in one folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(descriptor: int, wait: bool = False) -> bool:
    """Locks a folder until its descriptor is closed; returns False where that cannot be done."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def remove_abandoned(parent: pathlib.Path, pattern: str) -> None:
    """Removes the temporary folders of writers that were killed: old ones whose lock is free.

    Args:
        pattern: of their names in `parent`.
    """
    for path in parent.glob(pattern):
        try:
            old = time.time() - path.stat().st_mtime > _ABANDONED_AFTER_SECONDS
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            if old and lock(descriptor):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(descriptor)


def open_to_others(folder: pathlib.Path) -> None:
    """Gives a folder of `tempfile.mkdtemp`, which is for its owner alone, the usual permissions."""
    mask = os.umask(0o077)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
