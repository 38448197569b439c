"""Texts by name: token streams of the trainers of language models.

To add one, write a module with `load(...) -> TokenData` and add it to `DATASETS`. Its keyword arguments
are the options that it takes: data_dir, files, prepared_dir, or some of these.
"""

import inspect
import os
from collections.abc import Sequence

from tfdeq.data.text import (
    files,
    ptb,
    ptb_characters,
    python_stdlib,
    tiny_shakespeare,
    wikitext2,
    wikitext103,
)
from tfdeq.data.text.stand_in import stand_in as make_stand_in
from tfdeq.data.token_data import TokenData
from tfdeq.programs.paths import expanded

DATASETS = {
    "ptb": ptb.load,
    "ptb_characters": ptb_characters.load,
    "python_stdlib": python_stdlib.load,
    "text": files.load,
    "tiny_shakespeare": tiny_shakespeare.load,
    "wikitext2": wikitext2.load,
    "wikitext103": wikitext103.load,
}
"""Data set's name -> the function that loads it."""

# The data sets whose sizes `stand_in` knows: (published counts, unit).
_PUBLISHED = {
    "ptb": (ptb.PUBLISHED, "word"),
    "ptb_characters": (ptb_characters.PUBLISHED, "byte"),
    "wikitext2": (wikitext2.PUBLISHED, "word"),
    "wikitext103": (wikitext103.PUBLISHED, "word"),
}


def stand_in(name: str) -> TokenData | None:
    """Returns random tokens with a data set's published sizes, or None if it has none."""
    return make_stand_in(*_PUBLISHED[name]) if name in _PUBLISHED else None


def load(
    name: str,
    *,
    data_dir: str | None = None,
    files: str | Sequence[str] | None = None,
    prepared_dir: str | None = None,
) -> TokenData:
    """Loads a data set; TFDS prepares a copy of it the first time.

    Args:
        name: a key of `DATASETS`.
        data_dir: folder of the user's original files, for ptb, ptb_characters, wikitext2, wikitext103
            and tiny_shakespeare.
        files: globs, comma-separated, for text.
        prepared_dir: where TFDS writes prepared copies; None: the environment variable
            TFDS_DATA_DIR, or ~/tensorflow_datasets.

    Returns:
        The token streams of train, validation and test. Bytes: the files of a split are joined with one
        newline byte between them. Words: one `<eos>` per line.

    Raises:
        ValueError: for an unknown name, an option that the data set does not take, or invalid content.
        FileNotFoundError, NotADirectoryError: if `data_dir` or `files` does not exist.
        ConnectionError: if a download failed.
    """
    if name not in DATASETS:
        raise ValueError(f"Unknown data set {name!r}. Known: {', '.join(sorted(DATASETS))}.")
    loader = DATASETS[name]
    prepared_dir = None if prepared_dir is None else str(expanded(prepared_dir))
    options = {"data_dir": data_dir, "files": files, "prepared_dir": prepared_dir}
    given = {option: value for option, value in options.items() if value is not None}
    taken = inspect.signature(loader).parameters
    for option, value in given.items():
        if option not in taken:
            raise ValueError(
                f"The data set {name!r} takes no --{option}; received {value!r}. Leave it out, or "
                f"choose a data set that takes it: {', '.join(sorted(takers(option)))}."
            )
    if (
        prepared_dir is not None
        and os.path.exists(prepared_dir)
        and not os.path.isdir(prepared_dir)
    ):
        raise NotADirectoryError(f"prepared_dir={prepared_dir!r} is a file; name a folder.")
    return loader(**given)


def takers(option: str) -> list[str]:
    """Returns the names of the data sets that take an option, such as data_dir."""
    return [name for name in DATASETS if option in inspect.signature(DATASETS[name]).parameters]
