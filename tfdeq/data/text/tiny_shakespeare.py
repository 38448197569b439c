"""tiny_shakespeare: 1.1 MB of plays as bytes, through TFDS's own builder and splits."""

import base64
import hashlib
import pathlib
import shutil
import tempfile

import requests
import tensorflow_datasets as tfds
from absl import logging

from tfdeq.data import folders, prepared
from tfdeq.data.text import byte_documents
from tfdeq.data.token_data import TokenData

CONNECT_SECONDS = 10  # TFDS itself would try for minutes without a network


def load(*, data_dir: str | None = None, prepared_dir: str | None = None) -> TokenData:
    """Loads TFDS's tiny_shakespeare with its train, validation and test splits.

    Uses a prepared copy if there is one, else the original file in `data_dir`, as input.txt or under
    the name that TFDS gives its downloads. Otherwise it downloads the file, after a warning.

    Args:
        data_dir: folder of the original file, or None.
        prepared_dir: folder of the prepared copies; None: TFDS's own.

    Returns:
        Bytes.

    Raises:
        FileNotFoundError, NotADirectoryError: if `data_dir` is not a folder.
        ValueError: if the file in it is not the original.
        ConnectionError: if the download failed.
    """
    builder_class = tfds.builder_cls("tiny_shakespeare")
    ((url, original),) = builder_class.url_infos.items()
    file = _original_file(data_dir, url, original) if data_dir is not None else None

    def make_builder() -> tfds.core.DatasetBuilder:
        return builder_class(data_dir=prepared_dir)

    if prepared.is_prepared(make_builder):
        return byte_documents.byte_data(prepared.read_texts(make_builder))
    if file is None:  # an earlier download, whose preparation failed
        root = pathlib.Path(make_builder().data_dir_root)
        file = _named_by_checksum(root / "downloads", original)
    if file is None:
        return byte_documents.byte_data(_download(make_builder, url, data_dir))
    with tempfile.TemporaryDirectory() as manual_dir:
        # TFDS finds a user's file only by its original name.
        shutil.copyfile(file, pathlib.Path(manual_dir, original.filename))
        return byte_documents.byte_data(prepared.read_texts(make_builder, manual_dir=manual_dir))


def _instructions(url: str) -> str:
    return f"Fetch {url} on a machine that can, and name its folder with --data_dir."


def _original_file(data_dir: str, url: str, original) -> pathlib.Path | None:
    """Returns the original file in the user's folder, or None; ValueError for other content."""
    folder = folders.checked_folder(data_dir, _instructions(url))
    file = folder / original.filename
    if not file.is_file():
        file = _named_by_checksum(folder, original)
    if file is None:
        return None
    received = hashlib.sha256(file.read_bytes()).hexdigest()
    if received != original.checksum:
        raise ValueError(
            f"{str(file)!r} is not the original: it has {file.stat().st_size:,} bytes and SHA-256 "
            f"{received}; expected {int(original.size):,} and {original.checksum}. "
            f"{_instructions(url)} To train on your own text, use --dataset=text --files=GLOB."
        )
    return file


def _named_by_checksum(folder: pathlib.Path, original) -> pathlib.Path | None:
    # The names of TFDS's downloads contain the SHA-256, in URL-safe base64 without padding.
    checksum = base64.urlsafe_b64encode(bytes.fromhex(original.checksum)).decode().rstrip("=")
    return next(iter(sorted(folder.glob(f"**/*{checksum}.txt"))), None)


def _download(make_builder, url: str, data_dir: str | None) -> dict[str, list[bytes]]:
    if data_dir is not None:
        logging.warning("No input.txt in --data_dir=%r.", data_dir)
    logging.warning("Downloading tiny_shakespeare (1.1 MB) from %s.", url)
    try:
        requests.head(url, timeout=CONNECT_SECONDS)
        return prepared.read_texts(make_builder)
    except Exception as error:
        raise ConnectionError(
            f"Could not download tiny_shakespeare: {error}. {_instructions(url)}"
        ) from error
