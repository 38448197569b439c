"""Version folders as TensorFlow Serving reads them: their numbers, and writing them atomically."""

import errno
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable

from tfdeq.programs import whole_folder
from tfdeq.programs.paths import expanded
from tfdeq.programs.whole_folder import flush, flush_tree, lock
from tfdeq.programs.workdir import writing

# Every subfolder whose whole name parses as a 64-bit integer >= 0 is a version, even `0001` and `
# 7`.
_INTEGER = re.compile(r"[ \t\n\v\f\r]*[+-]?[0-9]+[ \t\n\v\f\r]*")
_LARGEST = 2**63 - 1
_TEMPORARY = ".tmp-"


class VersionExistsError(FileExistsError):
    """The version to write already exists; nothing was changed."""


def version_number(name: str) -> int | None:
    """Returns the version number that a server reads from a folder's name, or None.

    Example:
        >>> [version_number(name) for name in ("7", "0001", ".tmp-1-x", "-1", "1_0")]
        [7, 1, None, None, None]
    """
    if not _INTEGER.fullmatch(name):
        return None
    number = int(name)
    return number if 0 <= number <= _LARGEST else None


def existing_versions(output: str | os.PathLike) -> dict[int, pathlib.Path]:
    """Returns version -> path of the versions that a server finds in `output`; {} if it does not exist."""
    folder = expanded(output)
    if not folder.exists():
        return {}
    if not folder.is_dir():
        raise NotADirectoryError(f"output must be a folder; {str(folder)!r} is a file.")
    numbers = ((version_number(path.name), path) for path in sorted(folder.iterdir()))
    return {number: path for number, path in numbers if number is not None}


def next_version(output: str | os.PathLike) -> int:
    """Returns the highest existing version + 1; 1 if there is none.

    Raises:
        VersionExistsError: if the highest version is the largest possible number.
    """
    found = existing_versions(output)
    highest = max(found, default=0)
    if highest >= _LARGEST:
        raise VersionExistsError(
            f"No version can follow {highest}, the largest number that a server reads: "
            f"{str(found[highest])!r} is there. Nothing was changed. Give a free, lower version "
            "number, which a server takes as older, or rename that folder."
        )
    return highest + 1


def publish(
    output: str | os.PathLike,
    write: Callable[[pathlib.Path], None],
    version: int | None = None,
    finish: Callable[[pathlib.Path, int], None] | None = None,
) -> pathlib.Path:
    """Writes `output/<version>/` atomically.

    The content is written under a temporary name that no server takes for a version, on the same file
    system, flushed to the disk, and renamed. A writer that fails leaves nothing behind; the next call
    removes the files of a killed writer. Two simultaneous writers get different numbers: the number is
    chosen after the content is written, by one writer at a time.

    Args:
        output: folder of the versions; created if missing.
        write: called as write(folder) with an empty folder to fill.
        version: number, 0 … 2⁶³ − 1; None: the highest existing one + 1.
        finish: called as finish(folder, number) with the filled folder, to add what depends on the
            number; called again if another writer has taken that number in the meantime.

    Returns:
        The path of the version.

    Raises:
        VersionExistsError: if the version exists, or no number is left; nothing was changed.
        ValueError: for a number that is not a valid version.
        OSError: if it cannot be written; the message is one line.
    """
    output = expanded(output)
    check_free(output, version)
    with writing(str(output)):
        output.mkdir(parents=True, exist_ok=True)
        whole_folder.remove_abandoned(output, f"{_TEMPORARY}*-*")
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{os.getpid()}-", dir=output))
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        lock(descriptor)
        whole_folder.open_to_others(temporary)  # the server runs as another user
        write(temporary)
        flush_tree(temporary)
        return _publish_whole(output, temporary, version, finish)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)


def _publish_whole(
    output: pathlib.Path,
    temporary: pathlib.Path,
    version: int | None,
    finish: Callable[[pathlib.Path, int], None] | None,
) -> pathlib.Path:
    """Numbers a filled folder and renames it, one writer at a time."""
    descriptor = os.open(output, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Where the file system has no locks, the rename still refuses a number that is taken.
        lock(descriptor, wait=True)
        while True:
            check_free(output, version)
            number = next_version(output) if version is None else version
            if finish is not None:
                finish(temporary, number)
                flush_tree(temporary)
            target = output / str(number)
            try:
                _rename(temporary, target)
            except VersionExistsError:
                if version is not None:
                    raise
                continue
            flush(output)
            return target
    finally:
        os.close(descriptor)


def check_free(output: str | os.PathLike, version: int | None) -> None:
    """Raises the error of `publish` for a version that exists or is invalid; None: the next one."""
    versions = existing_versions(output)
    if version is None:
        next_version(output)
        return
    if isinstance(version, bool) or not isinstance(version, int) or not 0 <= version <= _LARGEST:
        raise ValueError(f"version must be an integer of 0 … 2^63 − 1; received {version!r}.")
    if version in versions:
        free = "Name another"
        if max(versions) < _LARGEST:
            free = f"Omit the version to get the next free one, {max(versions) + 1}"
        raise VersionExistsError(
            f"Version {version} already exists: {str(versions[version])!r}. Nothing was changed. "
            f"{free}, or remove that folder."
        )


def _rename(source: pathlib.Path, target: pathlib.Path) -> None:
    """Renames a folder to a name that must be free; rename(2) alone would replace an empty folder."""
    try:
        if not whole_folder.rename_to_free_name(source, target):
            os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise VersionExistsError(
                f"Another process created {str(target)!r} while this version was being written. It was "
                "not changed. Run again to write the next version."
            ) from error
        with writing(str(target)):
            raise
