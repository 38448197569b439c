"""text: the bytes of the user's own files."""

import functools
import glob
import itertools
import os
import pathlib
from collections.abc import Sequence

import tensorflow_datasets as tfds
from absl import logging

from tfdeq.data import prepared
from tfdeq.data.prepared import Document
from tfdeq.data.text import byte_documents
from tfdeq.data.token_data import TokenData
from tfdeq.programs.paths import expanded

# Largest number of parts between commas that may form one path; more would make long lists slow.
_MOST_PARTS = 16
LARGEST_FILE = 2**30  # bytes; a TFDS example must stay under 2 GiB


class Text(prepared.DocumentsBuilder, skip_registration=True):
    """A user's own files as bytes; the config name contains a digest of paths and contents."""

    name = "tfdeq_text"
    # Since 2: near-copies share a split; splits are shares of the bytes.
    VERSION = tfds.core.Version("2.0.0")


def load(*, files: str | Sequence[str] | None = None, prepared_dir: str | None = None) -> TokenData:
    """Loads files as bytes.

    Whole files are assigned to splits, about 90/5/5 by bytes, by a hash of their contents; copies and
    files that share many lines stay together, see `byte_documents.split_by_groups`. If such groups are
    too few or too large for that (fewer than about 80 files of equal length), each file is divided: its
    first 90 % train, then 5 % validation, 5 % test, except files with near-copies, see
    `byte_documents.split_within_files`. Empty files are ignored.

    Args:
        files: globs, comma-separated or a sequence; `**` matches any number of folders. The name of an
            existing file is taken literally, with all its characters.
        prepared_dir: folder of the prepared copies, one for each content; None: TFDS's own.

    Returns:
        Bytes; files in order of their paths, one newline byte between them.

    Raises:
        FileNotFoundError: if a glob matches no file.
        ValueError: for no glob, a folder instead of a file, files without content, or a file that is
            too large.
    """
    paths = matching_files(files)
    documents = _read_documents(paths)
    config_name = prepared.content_name("files", documents)

    split = functools.cache(lambda: _split(documents, files))

    def make_builder() -> Text:
        return Text(config_name=config_name, prepared_dir=prepared_dir, documents=split)

    if not prepared.is_prepared(make_builder):
        split()  # Raises before anything is written.
    return byte_documents.byte_data(prepared.read_texts(make_builder))


def _split(documents: Sequence[Document], files: object) -> dict[str, list[Document]]:
    splits = byte_documents.split_by_groups(documents, [document.text for document in documents])
    if splits is None:
        splits = byte_documents.split_within_files(documents)
    for split, part in splits.items():
        if not part:
            total = sum(len(document.text) for document in documents)
            raise ValueError(
                f"--files={files!r} holds {total:,} bytes in {len(documents)} files, which leaves "
                f"the {split} split empty. Give more text."
            )
    return splits


def matching_files(files: str | Sequence[str] | None) -> list[pathlib.Path]:
    """Returns the files that globs match, each once, sorted; raises the errors of `load`.

    The name of an existing path is taken literally, even with a comma, brackets or a question mark.
    """
    globs = _split_at_commas(files) if isinstance(files, str) else list(files or ())
    globs = [pattern for pattern in globs if pattern.strip()]
    if not globs:
        raise ValueError(
            f"The data set 'text' needs the files to read; received --files={files!r}. "
            "Name a glob, for example --files='notes/**/*.txt'."
        )
    paths: set[pathlib.Path] = set()
    for pattern in globs:
        matches = _matches(pattern)
        found = {pathlib.Path(match).resolve() for match in matches if os.path.isfile(match)}
        if not found and any(os.path.isdir(match) for match in matches):
            raise ValueError(
                f"--files={pattern!r} matches folders only. To read the files in a folder, write "
                f"{os.path.join(pattern.strip().rstrip('/*') or '.', '**', '*.txt')!r}."
            )
        if not found:
            raise FileNotFoundError(
                f"--files={pattern!r} matches no file (current folder: {os.getcwd()!r}). "
                "Check the path, and quote the glob so that the shell leaves it alone."
            )
        paths |= found
    return sorted(paths)


def _split_at_commas(files: str) -> list[str]:
    """Splits a list of globs at commas, except commas in the names of existing paths."""
    parts, globs = files.split(","), []
    while parts:
        joined = list(itertools.accumulate(parts[:_MOST_PARTS], "{},{}".format))
        exists = [text for text in joined if _existing(text)]
        files_there = [text for text in exists if os.path.isfile(_existing(text) or "")]
        globbed = (text for text in joined if any(map(os.path.isfile, _matches(text))))
        # The longest name of a file, the shortest glob that matches files, or the path for the
        # error message.
        globs.append(
            files_there[-1] if files_there else next(globbed, exists[-1] if exists else parts[0])
        )
        parts = parts[globs[-1].count(",") + 1 :]
    return globs


def _existing(name: str) -> str | None:
    """Returns the existing path with exactly this name, which may begin or end with a space, or None."""
    paths = (str(expanded(text)) for text in (name, name.strip()) if text)
    return next((path for path in paths if os.path.lexists(path)), None)


def _matches(pattern: str) -> list[str]:
    """Returns what exists under a name, or what a glob matches below the existing folders in it."""
    path = _existing(pattern)
    if path is not None:
        return [path]
    folder, rest = pathlib.Path(), expanded(pattern.strip()).parts
    while rest and os.path.lexists(folder / rest[0]):
        folder, rest = folder / rest[0], rest[1:]
    return glob.glob(os.path.join(glob.escape(str(folder)), *rest), recursive=True)


def _read_documents(paths: Sequence[pathlib.Path]) -> list[Document]:
    for path in paths:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise ValueError(
                f"{str(path)!r} has {size:,} bytes; a file may have {LARGEST_FILE:,} at most. "
                "Split it into several."
            )
    root = os.path.commonpath([path.parent for path in paths])
    texts = [Document(os.path.relpath(path, root), path.read_bytes()) for path in paths]
    documents = [document for document in texts if document.text]
    if not documents:
        names = ", ".join(repr(str(path)) for path in paths[:3])
        raise ValueError(f"All {len(paths)} files are empty ({names} ...). Give files with text.")
    if len(documents) < len(texts):
        logging.info("Left out %d empty files of %d.", len(texts) - len(documents), len(texts))
    return documents
