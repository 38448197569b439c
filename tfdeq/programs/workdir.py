"""A trainer's folder: configuration, curves and metrics, each written atomically."""

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
    """A context that reports errors in writing a file or folder in one line.

    Args:
        path: path of the file or folder.
        kinds: exceptions for such errors, in addition to OSError.

    Raises:
        OSError: with the path, the reason and what to do.
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
    """Returns the first line of an error, or of one of its causes, that is of these kinds."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, kinds):
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return text.splitlines()[0]
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def write_json(path: str, value: Any) -> None:
    """Writes value as JSON atomically: a reader sees the old file or the new one, never a part."""
    write_atomically(path, lambda name: _dump(name, value))


def write_atomically(path: str, write: Callable[[str], None]) -> None:
    """Calls write(temporary name beside path), then renames the result to path.

    Raises:
        OSError: if it cannot be written; path does not change.
    """
    folder, name = os.path.split(path)
    # The end of the name is kept, because Keras chooses the format by it.
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
    """Returns the file's object, or None if there is no file.

    Raises:
        ValueError: for a file that does not hold a JSON object.
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
    """A context in which this process holds a lock on workdir, which is created if missing.

    Partial files of killed processes are removed.

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
    """The training curves: one row per report, kept when a run resumes.

    Args:
        path: a JSON-lines file. `rewind` removes the rows after a restored step.
    """

    def __init__(self, path: str):
        self._path = path
        self.rows: list[dict[str, Any]] = []
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                lines = file.read().splitlines()
            for line in lines:
                try:
                    # Runs before 0.1.0 have "held_out" instead of "validation".
                    self.rows.append(json.loads(line.replace('"held_out_', '"validation_')))
                except json.JSONDecodeError:
                    break  # the run was killed while it wrote this row, which will be written again

    def rewind(self, step: int) -> None:
        """Removes the rows after a step, because the run repeats that part."""
        self.rows = [row for row in self.rows if row["step"] <= step]
        write_atomically(self._path, self._write)

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row.

        Raises:
            OSError: if it cannot be written; no partial row remains.
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
        """Returns name -> the values of all rows, None if a row lacks it."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        return {name: [row.get(name) for row in self.rows] for name in names}

    def _write(self, path: str) -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(_finite(row)) + "\n" for row in self.rows)


def _finite(value: Any) -> Any:
    """Replaces NaN and infinity, which JSON lacks, by None."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _dump(path: str, value: Any) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(_finite(value), file, indent=1, allow_nan=False)
        file.write("\n")
