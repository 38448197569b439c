"""A trainer's folder: configuration, curves and metrics, each written whole or not at all."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def write_json(path: str, value: Any) -> None:
    """Writes value as JSON so that a reader sees the old file or the new one, never half of one."""
    write_atomically(path, lambda name: _dump(name, value))


def write_atomically(path: str, write: Callable[[str], None]) -> None:
    """Calls write(temporary name beside path), then renames the result to path."""
    folder, name = os.path.split(path)
    os.makedirs(folder or ".", exist_ok=True)
    # The name's end stays as it is: Keras chooses the format by it.
    temporary = os.path.join(folder, f".partial-{os.getpid()}-{name}")
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


def claim(workdir: str, config: Mapping[str, Any], may_differ: Iterable[str] = ()) -> bool:
    """Makes workdir this run's, and returns whether it already was.

    Args:
        may_differ: names of settings that change no result, such as how often to report.

    Raises:
        NotADirectoryError: if workdir is a file.
        ValueError: if workdir belongs to a run of another configuration; nothing is changed.
    """
    if os.path.exists(workdir) and not os.path.isdir(workdir):
        raise NotADirectoryError(
            f"--workdir={workdir} is a file. Name a folder, new or of this run."
        )
    path = os.path.join(workdir, "config.json")
    known = read_json(path)
    if known is None:
        write_json(path, dict(config))
        return False
    received = json.loads(json.dumps(dict(config)))
    differences = [
        f"--{name}: {known.get(name)!r} there, {received.get(name)!r} received"
        for name in sorted({*known, *received})
        if known.get(name) != received.get(name) and name not in may_differ
    ]
    if differences:
        raise ValueError(
            f"--workdir={workdir} holds a run of another configuration: {'; '.join(differences)}. "
            "Name another --workdir, give the flags of that run to go on with it, or delete the "
            "folder to start over. Nothing was changed."
        )
    return True


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
                    self.rows.append(json.loads(line))
                except json.JSONDecodeError:
                    break  # a run that was killed while it wrote: that row comes again

    def rewind(self, step: int) -> None:
        """Drops the rows after a step, since that part of the run comes again."""
        self.rows = [row for row in self.rows if row["step"] <= step]
        write_atomically(self._path, self._write)

    def append(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def columns(self) -> dict[str, list[Any]]:
        """name -> the values of all rows, None where a row lacks it."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        return {name: [row.get(name) for row in self.rows] for name in names}

    def _write(self, path: str) -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in self.rows)


def _dump(path: str, value: Any) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
