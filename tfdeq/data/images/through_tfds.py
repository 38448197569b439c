"""Data sets of pictures through TensorFlow Datasets (TFDS), which downloads and prepares them."""

import numpy as np
import requests
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from tfdeq.data.examples import Split
from tfdeq.data.prepared import quiet

CONNECT_SECONDS = 10  # TFDS itself would try for minutes where there is no network


def read(name: str, prepared_dir: str | None, instructions: str) -> dict[str, Split]:
    """Returns the splits "train" and "test" of a TFDS data set, which is prepared where it is not yet.

    Args:
        name: of a TFDS data set with the features "image" and "label".
        prepared_dir: where TFDS keeps its data sets; None: its own place.
        instructions: what to do where nothing can be downloaded, for the error.

    Returns:
        name -> (pictures [N, H, W, C] uint8, classes [N] int32), in the order in which they are stored.

    Raises:
        ConnectionError: the download failed.
        ValueError: the prepared copy is damaged.
    """
    with quiet():
        builder = tfds.builder(name, data_dir=prepared_dir)
        prepared = builder.is_prepared()
    if not prepared:
        _prepare(builder, instructions)
    try:
        with quiet():
            return {split: _read_split(builder, split) for split in ("train", "test")}
    except (tf.errors.OpError, OSError, ValueError) as error:
        raise ValueError(
            f"The prepared copy in {builder.data_dir} cannot be read: {error}. Delete that folder and run "
            "again to prepare it again."
        ) from error


def _prepare(builder: tfds.core.DatasetBuilder, instructions: str) -> None:
    url = next(iter(builder.url_infos), None)
    logging.warning("Downloading %s through TFDS into %s.", builder.name, builder.data_dir)
    try:
        if url is not None:
            requests.head(url, timeout=CONNECT_SECONDS)
        with quiet():
            builder.download_and_prepare()
    except Exception as error:
        raise ConnectionError(
            f"Could not download {builder.name} through TFDS: {error}. {instructions}"
        ) from error


def _read_split(builder: tfds.core.DatasetBuilder, split: str) -> Split:
    # One shard after the other, so that the order is always the same.
    read_config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    dataset = builder.as_dataset(
        split=split, read_config=read_config, shuffle_files=False, as_supervised=True
    )
    pictures, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.stack(pictures), np.array(labels, np.int32)
