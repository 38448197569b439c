"""Prepared copies: texts are written once with TensorFlow Datasets (TFDS) and then read from there.

A copy is in `<prepared_dir>/<builder name>/<config name>/<version>`. The config name contains a digest
of the content, so a copy is never stale: different content has a different copy.
"""

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from tfdeq.data.token_data import SPLITS


class Document(NamedTuple):
    """One text of a data set, which becomes one TFDS example."""

    path: str  # a readable name of the text, relative to the data set's folder
    text: bytes


class DocumentsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TFDS builder of examples {"path": string, "text": bytes}, one per document, in the given order.

    Args:
        config_name: identifies the content; see `content_name`.
        prepared_dir: folder of the prepared copies; None: TFDS's own.
        documents: returns the documents of each split; called when a copy is prepared. A subclass that
            overrides `split_documents` does not need it.
    """

    # Increase it when the splits of the same content change: it is part of the copies' names.
    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        config_name: str,
        prepared_dir: str | None = None,
        documents: Callable[[], Mapping[str, Sequence[Document]]] | None = None,
    ):
        self._documents = documents
        super().__init__(config=tfds.core.BuilderConfig(name=config_name), data_dir=prepared_dir)

    def split_documents(self, manual_dir: Callable[[], str]) -> Mapping[str, Sequence[Document]]:
        """Returns the documents of each split; `manual_dir()` is the folder that the user gave."""
        del manual_dir
        return self._documents()

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {"path": tfds.features.Text(), "text": tfds.features.Text()}
            ),
            disable_shuffling=True,  # the order of the documents is the order of the stream
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        documents = self.split_documents(lambda: str(dl_manager.manual_dir))
        return {split: self._generate_examples(documents[split]) for split in SPLITS}

    def _generate_examples(self, documents: Iterable[Document]):
        for index, document in enumerate(documents):
            yield index, {"path": _encoded(document.path), "text": document.text}


def content_name(prefix: str, documents: Iterable[Document]) -> str:
    """Returns a config name: `prefix`, then 20 hex digits of the SHA-256 of paths and texts."""
    digest = hashlib.sha256()
    for document in documents:
        path = _encoded(document.path)
        digest.update(f"{len(path)} {len(document.text)}\n".encode())
        digest.update(path)
        digest.update(document.text)
    return f"{prefix}_{digest.hexdigest()[:20]}"


def _encoded(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")  # file names need not be UTF-8


def is_prepared(make_builder: Callable[[], tfds.core.DatasetBuilder]) -> bool:
    """Returns whether a complete prepared copy exists."""
    with quiet():
        return make_builder().is_prepared()


def read_texts(
    make_builder: Callable[[], tfds.core.DatasetBuilder], *, manual_dir: str | None = None
) -> dict[str, list[bytes]]:
    """Reads a copy, which is prepared first if there is none.

    Args:
        make_builder: returns a new builder. It is called again if another process prepared the same
            copy in the meantime.
        manual_dir: folder of the user's own files, for a builder that reads one.

    Returns:
        The texts of "train", "validation" and "test", in the order in which they were written.

    Raises:
        ValueError: if the prepared copy is damaged.
    """
    with quiet():
        builder = make_builder()
        prepared = builder.is_prepared()
    if not prepared:
        if builder.data_path.exists():
            raise ValueError(_damaged(builder, "it lacks its dataset_info.json or features.json"))
        logging.info("Preparing %s in %s.", builder.name, builder.data_dir)
        builder = _prepare(builder, make_builder, manual_dir)
    try:
        with quiet():
            return {split: _read_split(builder, split) for split in SPLITS}
    except (tf.errors.OpError, OSError) as error:
        raise ValueError(_damaged(builder, error)) from error


def _prepare(
    builder: tfds.core.DatasetBuilder,
    make_builder: Callable[[], tfds.core.DatasetBuilder],
    manual_dir: str | None,
) -> tfds.core.DatasetBuilder:
    try:
        with quiet():
            # TFDS writes to a folder `incomplete.*`, which it renames at the end, or removes after
            # an error.
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(manual_dir=manual_dir)
            )
        return builder
    except Exception:
        # The rename fails if another process was faster. Its copy has the same content.
        with quiet():
            builder = make_builder()
            if not builder.is_prepared():
                raise
        return builder


def _read_split(builder: tfds.core.DatasetBuilder, split: str) -> list[bytes]:
    # One shard after another, because interleaved shards would change the order.
    read_config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    dataset = builder.as_dataset(split=split, read_config=read_config, shuffle_files=False)
    return [example["text"] for example in dataset.as_numpy_iterator()]


def _damaged(builder: tfds.core.DatasetBuilder, reason: object) -> str:
    return (
        f"The prepared copy in {builder.data_dir} cannot be read: {reason}. Delete that folder and run "
        "again to prepare it again."
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides TFDS's progress bars, prints and log lines; the bars also remain off afterwards."""
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
