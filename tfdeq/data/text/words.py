"""Corpora of whitespace-separated words with published token counts, one file per split."""

import collections
import gzip
import pathlib
import zlib
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np

from tfdeq.data import folders, prepared
from tfdeq.data.prepared import Document
from tfdeq.data.token_data import SPLITS, TokenData, token_data

END_OF_SENTENCE = b"<eos>"
UNKNOWN = b"<unk>"


class Counts(NamedTuple):
    """Published sizes of a corpus, with one end of sentence per line."""

    tokens: Mapping[str, int]  # of each split
    types: int  # distinct words of the training split, including `<eos>`


class WordsBuilder(prepared.DocumentsBuilder, skip_registration=True):
    """TFDS builder of one file per split, plain or gzip, in the user's folder (`manual_dir`)."""

    FILES: ClassVar[Mapping[str, str]]  # file name of each split

    def split_documents(self, manual_dir) -> dict[str, list[Document]]:
        return read_documents(pathlib.Path(manual_dir()), self.FILES)


def load(
    builder_class: type[WordsBuilder],
    published: Counts,
    *,
    data_dir: str | None,
    prepared_dir: str | None,
) -> TokenData:
    """Loads a corpus of words and checks its sizes against the published ones.

    Every line ends in one `<eos>`. The vocabulary is the distinct words of the training split; ids are
    sorted by decreasing frequency there, and for ties by code point. A word that is not in the training
    split becomes `<unk>`.

    Args:
        builder_class: has the names of the files, and tells the user where to get them.
        published: the sizes to expect.
        data_dir: folder of the original files.
        prepared_dir: folder of the prepared copies; None: TFDS's own.

    Returns:
        Words.

    Raises:
        FileNotFoundError, NotADirectoryError: if there is no such folder, or no such file in it.
        ValueError: if no folder is given, for a file that is neither UTF-8 nor gzipped UTF-8, or for
            sizes other than the published ones.
    """
    instructions = builder_class.MANUAL_DOWNLOAD_INSTRUCTIONS
    folder = folders.required_folder(data_dir, instructions)
    sources = read_documents(folder, builder_class.FILES, instructions)
    config_name = prepared.content_name("words", (sources[split][0] for split in SPLITS))

    def make_builder() -> WordsBuilder:
        return builder_class(config_name=config_name, prepared_dir=prepared_dir)

    if not prepared.is_prepared(make_builder):
        # Raises an error for other files before anything is written.
        word_data({split: sources[split][0].text for split in SPLITS}, published)
    texts = prepared.read_texts(make_builder, manual_dir=str(folder))
    return word_data({split: b"".join(texts[split]) for split in SPLITS}, published)


def words_of(text: bytes) -> list[bytes]:
    """Returns a text's words and one `<eos>` per line, even for a last line without a newline."""
    if text and not text.endswith(b"\n"):
        text += b"\n"
    return text.replace(b"\n", b" " + END_OF_SENTENCE + b" ").split()


def word_data(texts: Mapping[str, bytes], published: Counts) -> TokenData:
    """Numbers the words of three texts; see `load`."""
    words = {split: words_of(texts[split]) for split in SPLITS}
    frequencies = collections.Counter(words["train"])
    vocabulary = sorted(frequencies, key=lambda word: (-frequencies[word], word))
    check_counts({split: len(words[split]) for split in SPLITS}, len(vocabulary), published)
    ids = {word: index for index, word in enumerate(vocabulary)}
    unknown = ids.get(UNKNOWN)
    if unknown is None and any(word not in ids for split in SPLITS for word in words[split]):
        raise ValueError(
            "The validation or test split has words that training has not, and training has no "
            "'<unk>' to stand for them. Use the original files, in which rare words are '<unk>'."
        )
    streams = {
        split: np.fromiter(
            (ids.get(word, unknown) for word in words[split]), np.int32, len(words[split])
        )
        for split in SPLITS
    }
    return token_data(
        streams,
        vocabulary_size=len(vocabulary),
        unit="word",
        vocabulary=tuple(word.decode() for word in vocabulary),
    )


def read_documents(
    folder: pathlib.Path, files: Mapping[str, str], instructions: str = ""
) -> dict[str, list[Document]]:
    """Reads one file per split, `NAME` or `NAME.gz`, and checks that it is UTF-8."""
    paths = {split: _find(folder, files[split], instructions) for split in SPLITS}
    return {split: [Document(files[split], _read(paths[split]))] for split in SPLITS}


def _find(folder: pathlib.Path, name: str, instructions: str) -> pathlib.Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"Neither {name} nor {name}.gz in {str(folder)!r}, which holds {folders.listing(folder)}. "
        f"{instructions}"
    )


def _read(path: pathlib.Path) -> bytes:
    try:
        text = path.read_bytes()
        if path.suffix == ".gz":
            text = gzip.decompress(text)
        text.decode("utf-8")
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as {'gzip of ' if path.suffix == '.gz' else ''}UTF-8 "
            f"text: {error}. Fetch the file again."
        ) from error
    return text


def check_counts(tokens: Mapping[str, int], types: int, published: Counts) -> None:
    rows = [(f"{split} tokens", tokens[split], published.tokens[split]) for split in SPLITS]
    rows.append(("types", types, published.types))
    if any(received != expected for _, received, expected in rows):
        table = "; ".join(
            f"{name}: {got:,} received, {want:,} expected" for name, got, want in rows
        )
        raise ValueError(
            f"The files are not the published corpus ({table}; one <eos> a line). Fetch the "
            "original files, or train on your own text as bytes with --dataset=text --files=GLOB."
        )
