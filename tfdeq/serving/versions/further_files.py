"""Files that a caller adds to a version: under names that lead nowhere else and are not taken."""

import pathlib
from collections.abc import Mapping

from tfdeq.serving.versions import keras_state, loading, manifest, model_card, warm_up

# What `tfdeq.serving.export` writes beside them.
_TAKEN = frozenset((model_card.NAME, manifest.NAME, loading.NAME, keras_state.FOLDER, warm_up.NAME))


def check_names(files: Mapping[str, str]) -> None:
    """Refuses names that are no plain names of files, or are those of a version's own files.

    Raises:
        ValueError: with the name and what it may be.
        TypeError: a name or a text that is none.
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
        if name.lower() in _TAKEN:  # on some file systems both are one
            raise ValueError(
                f"files names {name!r}, which is what the version itself writes. Choose another name; "
                f"taken are {', '.join(sorted(_TAKEN))}."
            )


def write(files: Mapping[str, str], folder: pathlib.Path) -> None:
    """Writes the files into a version's folder of further files; none replaces another."""
    for name, text in files.items():
        with (folder / name).open("x", encoding="utf-8") as file:
            file.write(text)
