"""Checks of the folder that a user gives for a data set's original files."""

import pathlib

from tfdeq.programs.paths import expanded


def checked_folder(data_dir: str, instructions: str) -> pathlib.Path:
    """Returns the folder, expanded; raises FileNotFoundError or NotADirectoryError."""
    folder = expanded(data_dir)
    if not folder.exists():
        raise FileNotFoundError(f"--data_dir={data_dir!r} does not exist. {instructions}")
    if not folder.is_dir():
        raise NotADirectoryError(
            f"--data_dir={data_dir!r} is a file; name the folder that holds it. {instructions}"
        )
    return folder


def required_folder(data_dir: str | None, instructions: str) -> pathlib.Path:
    """Returns `checked_folder` of a required folder; raises ValueError if it is not given."""
    if data_dir is None:
        raise ValueError(
            f"The data set needs its original files, and no --data_dir was given. {instructions}"
        )
    return checked_folder(data_dir, instructions)


def listing(folder: pathlib.Path) -> str:
    """Returns the first names in a folder, for error messages."""
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
