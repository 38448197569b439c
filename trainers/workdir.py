"""A trainer's folder: configuration, curves and metrics, each written whole or not at all."""

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_PARTIAL = ".partial-"


def write_json(path: str, value: Any) -> None:
    """Writes value as JSON so that a reader sees the old file or the new one, never half of one."""
    write_atomically(path, lambda name: _dump(name, value))


def write_atomically(path: str, write: Callable[[str], None]) -> None:
    """Calls write(temporary name beside path), then renames the result to path."""
    folder, name = os.path.split(path)
    os.makedirs(folder or ".", exist_ok=True)
    # The name's end stays as it is: Keras chooses the format by it.
    temporary = os.path.join(folder, f"{_PARTIAL}{os.getpid()}-{name}")
    try:
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
            f"{os.fspath(path)!r} cannot be read as JSON: {error}. A trainer writes it: move it away, "
            "and run the trainer again with the same flags."
        ) from error
    return value


@contextlib.contextmanager
def locked(workdir: str) -> Iterator[None]:
    """Holds workdir for this process, making it if it is missing, until the context ends.

    What a killed writer left half-written is removed.

    Raises:
        BlockingIOError: if another process holds it.
    """
    os.makedirs(workdir, exist_ok=True)
    with open(os.path.join(workdir, ".lock"), "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"Another process trains in --workdir={workdir}. Wait for it or end it, or name "
                "another folder."
            ) from error
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
        self.rows.append(dict(row))
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(row)) + "\n")

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
