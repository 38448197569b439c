"""A caller's additional files in a version, under plain names that are not already used."""

import pathlib
from collections.abc import Mapping

from tfdeq.serving.edge import converted
from tfdeq.serving.versions import keras_state, loading, manifest, model_card, warm_up

# The names that `tfdeq.serving.export` itself uses.
_TAKEN = frozenset(
    (
        model_card.NAME,
        manifest.NAME,
        loading.NAME,
        keras_state.FOLDER,
        warm_up.NAME,
        *(name for format in converted.FORMATS.values() for name in format.names.values()),
    )
)


def check_names(files: Mapping[str, str]) -> None:
    """Raises an error for names that are not plain file names, or are used by the version itself.

    Raises:
        ValueError: for an invalid name; the message says which names are valid.
        TypeError: for a name or content that is not a text.
    """
    for name, text in files.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError(
                "files must map names to texts; received "
                f"{type(name).__name__} -> {type(text).__name__} for {name!r}."
            )
        if name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
            raise ValueError(
                f"files names {name!r}, which is no plain name: it is empty, or leads to another folder. "
                "Name a file without its folder; it is written under assets.extra/."
            )
        if name.lower() in _TAKEN:  # some file systems ignore case
            raise ValueError(
                f"files names {name!r}, which is what the version itself writes. Choose another name; "
                f"taken are {', '.join(sorted(_TAKEN))}."
            )


def write(files: Mapping[str, str], folder: pathlib.Path) -> None:
    """Writes the files into a version's folder of additional files, without replacing any."""
    for name, text in files.items():
        with (folder / name).open("x", encoding="utf-8") as file:
            file.write(text)
