"""mnist and fashion_mnist: 70,000 grey pictures of 28 × 28 in ten classes, 10,000 of them for the test."""

import pathlib

import numpy as np

from tfdeq.data import folders
from tfdeq.data.examples import Split
from tfdeq.data.images import idx, through_tfds
from tfdeq.data.images.image_data import ImageData
from tfdeq.data.images.splits import set_aside

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_INSTRUCTIONS = (
    f"Put the four original files ({', '.join(name for pair in _FILES.values() for name in pair)}; each "
    "plain or .gz) into one folder and name it with --data_dir."
)
DIGITS = tuple("0123456789")
CLOTHES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


def load_mnist(
    *, data_dir: str | None = None, prepared_dir: str | None = None, validation: int = 5000
) -> ImageData:
    """Loads MNIST (LeCun, Bottou, Bengio, Haffner, 1998); see `tfdeq.data.images.load`."""
    return _load("mnist", DIGITS, data_dir, prepared_dir, validation)


def load_fashion_mnist(
    *, data_dir: str | None = None, prepared_dir: str | None = None, validation: int = 5000
) -> ImageData:
    """Loads Fashion-MNIST (Xiao, Rasul, Vollgraf, arXiv:1708.07747); see `tfdeq.data.images.load`."""
    return _load("fashion_mnist", CLOTHES, data_dir, prepared_dir, validation)


def _load(
    name: str,
    classes: tuple[str, ...],
    data_dir: str | None,
    prepared_dir: str | None,
    validation: int,
) -> ImageData:
    if data_dir is None:
        splits = through_tfds.read(name, prepared_dir, _INSTRUCTIONS)
    else:
        folder = folders.checked_folder(data_dir, _INSTRUCTIONS)
        splits = {split: _read(folder, split, len(classes)) for split in _FILES}
    return ImageData(set_aside(splits["train"], splits["test"], validation), classes)


def _read(folder: pathlib.Path, split: str, classes: int) -> Split:
    paths = [_found(folder, name) for name in _FILES[split]]
    pictures, labels = idx.read(paths[0], rank=3), idx.read(paths[1], rank=1)
    if len(pictures) != len(labels):
        raise ValueError(
            f"{str(paths[0])!r} has {len(pictures):,} pictures and {str(paths[1])!r} {len(labels):,} labels. "
            f"{_INSTRUCTIONS}"
        )
    if not len(labels) or labels.max() >= classes:
        raise ValueError(
            f"{str(paths[1])!r} must have labels from 0 to {classes - 1}; received {len(labels):,} of them, "
            f"up to {labels.max(initial=0)}. {_INSTRUCTIONS}"
        )
    return pictures[..., None], labels.astype(np.int32)


def _found(folder: pathlib.Path, name: str) -> pathlib.Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"No {name} or {name}.gz in {str(folder)!r}, which holds {folders.listing(folder)}. {_INSTRUCTIONS}"
    )
