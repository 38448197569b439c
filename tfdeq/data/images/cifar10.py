"""cifar10: 60,000 colour pictures of 32 × 32 in ten classes, 10,000 of them for the test."""

import io
import pathlib
import pickle
from typing import Any

import numpy as np

from tfdeq.data import folders
from tfdeq.data.examples import Split
from tfdeq.data.images import through_tfds
from tfdeq.data.images.image_data import ImageData
from tfdeq.data.images.splits import set_aside

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_FILES = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}
_SHAPE = (3, 32, 32)  # channels first
_RECORD = 1 + 3 * 32 * 32  # of the binary version: the class, then the picture
_INSTRUCTIONS = (
    "Unpack the binary or the Python version of CIFAR-10 (data_batch_1 to data_batch_5 and test_batch, each "
    "with or without .bin), and name the folder with --data_dir."
)
# What a file of the Python version is made of. Pickle could run any other code.
_HARMLESS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}


def load(
    *, data_dir: str | None = None, prepared_dir: str | None = None, validation: int = 5000
) -> ImageData:
    """Loads CIFAR-10 (Krizhevsky, 2009); see `tfdeq.data.images.load`."""
    if data_dir is None:
        splits = through_tfds.read("cifar10", prepared_dir, _INSTRUCTIONS)
    else:
        folder = folders.checked_folder(data_dir, _INSTRUCTIONS)
        splits = {split: _read(folder, names) for split, names in _FILES.items()}
    return ImageData(set_aside(splits["train"], splits["test"], validation), CLASSES)


def _read(folder: pathlib.Path, names: tuple[str, ...]) -> Split:
    parts = [_read_file(_found(folder, name)) for name in names]
    pictures, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return pictures.transpose(0, 2, 3, 1), labels.astype(np.int32)


def _found(folder: pathlib.Path, name: str) -> pathlib.Path:
    # The archives hold one folder, which may be the one that is named or lie in it.
    for place in (folder, folder / "cifar-10-batches-bin", folder / "cifar-10-batches-py"):
        for path in (place / f"{name}.bin", place / name):
            if path.is_file():
                return path
    raise FileNotFoundError(
        f"No {name} or {name}.bin in {str(folder)!r}, which holds {folders.listing(folder)}. {_INSTRUCTIONS}"
    )


def _read_file(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    content = path.read_bytes()
    read = _binary if path.suffix == ".bin" else _python
    try:
        pictures, labels = read(content)
        if not len(labels) or labels.min() < 0 or labels.max() >= len(CLASSES):
            raise ValueError(f"its labels are not from 0 to {len(CLASSES) - 1}")
    except Exception as error:  # what damaged pickles raise has no common class
        raise ValueError(f"{str(path)!r} is damaged: {error}. {_INSTRUCTIONS}") from error
    return pictures, labels


def _binary(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    if not content or len(content) % _RECORD:
        raise ValueError(
            f"its size, {len(content):,} bytes, is not a multiple of {_RECORD:,}, that of a picture"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    return records[:, 1:].reshape(-1, *_SHAPE), records[:, 0]


def _python(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    pictures, labels = np.asarray(batch[b"data"], np.uint8), np.asarray(batch[b"labels"])
    if len(pictures) != len(labels):
        raise ValueError(f"it has {len(pictures):,} pictures and {len(labels):,} labels")
    return pictures.reshape(-1, *_SHAPE), labels


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no such file needs")
        return super().find_class(module, name)
