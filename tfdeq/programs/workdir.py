"""A trainer's folder: configuration, curves and metrics, each written whole or not at all."""

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tfdeq.programs.preemption import requests_held_back

_PARTIAL = ".partial-"


@contextlib.contextmanager
def writing(path: str, *kinds: type[Exception]) -> Iterator[None]:
    """Inside it, what keeps a file or folder from being written is raised as one line.

    Args:
        path: of the file or folder.
        kinds: exceptions that say so, beside OSError.

    Raises:
        OSError: with the path, the reason, and what to do.
    """
    try:
        yield
    except Exception as error:
        reason = _refusal(error, (OSError, *kinds))
        if reason is None:
            raise
        raise OSError(
            f"{path} cannot be written: {reason}. Free some space, remove the cause, or choose another "
            "folder (for a trainer: another --workdir)."
        ) from error


def _refusal(error: BaseException | None, kinds: tuple[type[Exception], ...]) -> str | None:
    """The first line of an error, or of one that it came from, if it is of these kinds."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, kinds):
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return text.splitlines()[0]
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def write_json(path: str, value: Any) -> None:
    """Writes value as JSON so that a reader sees the old file or the new one, never half of one."""
    write_atomically(path, lambda name: _dump(name, value))


def write_atomically(path: str, write: Callable[[str], None]) -> None:
    """Calls write(temporary name beside path), then renames the result to path.

    Raises:
        OSError: if it cannot be written; path is as it was.
    """
    folder, name = os.path.split(path)
    # The name's end stays as it is: Keras chooses the format by it.
    temporary = os.path.join(folder, f"{_PARTIAL}{os.getpid()}-{name}")
    with requests_held_back():
        try:
            with writing(path):
                os.makedirs(folder or ".", exist_ok=True)
                write(temporary)
                os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)


def read_json(path: str | os.PathLike) -> dict[str, Any] | None:
    """Returns the file's object, or None where there is no file.

    Raises:
        ValueError: a file that holds no JSON object.
    """
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}, not an object")
    except ValueError as error:
        raise ValueError(
            f"{os.fspath(path)!r} cannot be read as JSON: {error}. A trainer writes this file. Move it "
            "away, and run the trainer again with the same flags."
        ) from error
    return value


@contextlib.contextmanager
def locked(workdir: str) -> Iterator[None]:
    """Holds workdir for this process, making it if it is missing, until the context ends.

    What a killed writer left half-written is removed.

    Raises:
        BlockingIOError: if another process holds it.
        OSError: if it cannot be written.
    """
    with writing(f"--workdir={workdir}"):
        os.makedirs(workdir, exist_ok=True)
        file = open(os.path.join(workdir, ".lock"), "w", encoding="utf-8")  # noqa: SIM115
    with file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"Another process is training in --workdir={workdir}. Wait for it, stop it, or choose "
                "another folder."
            ) from error
        with writing(f"--workdir={workdir}"):
            for name in os.listdir(workdir):
                if name.startswith(_PARTIAL):
                    os.remove(os.path.join(workdir, name))
        yield


class Curves:
    """The training curves: one row a report, kept across resumption.

    Args:
        path: a JSON-lines file. Rows beyond the restored step are dropped when `rewind` is called.
    """

    def __init__(self, path: str):
        self._path = path
        self.rows: list[dict[str, Any]] = []
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                lines = file.read().splitlines()
            for line in lines:
                try:
                    # Runs of before 0.1.0 say "held_out".
                    self.rows.append(json.loads(line.replace('"held_out_', '"validation_')))
                except json.JSONDecodeError:
                    break  # a run that was killed while it wrote: that row comes again

    def rewind(self, step: int) -> None:
        """Drops the rows after a step, since that part of the run comes again."""
        self.rows = [row for row in self.rows if row["step"] <= step]
        write_atomically(self._path, self._write)

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row.

        Raises:
            OSError: if it cannot be written; nothing half-written stays.
        """
        self.rows.append(dict(row))
        length = os.path.getsize(self._path) if os.path.exists(self._path) else 0
        try:
            with writing(self._path), open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(_finite(row)) + "\n")
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self._path, length)
            raise

    def columns(self) -> dict[str, list[Any]]:
        """name -> the values of all rows, None where a row lacks it."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        return {name: [row.get(name) for row in self.rows] for name in names}

    def _write(self, path: str) -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(_finite(row)) + "\n" for row in self.rows)


def _finite(value: Any) -> Any:
    """Replaces NaN and Inf, which JSON lacks, by None."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _dump(path: str, value: Any) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(_finite(value), file, indent=1, allow_nan=False)
        file.write("\n")
