"""folder: PNG and JPEG pictures of one's own, each class in a folder of its name."""

import pathlib

import numpy as np
import tensorflow as tf
from absl import logging

from tfdeq.data import folders
from tfdeq.data.examples import Examples
from tfdeq.data.images import encoded, splits
from tfdeq.data.images.image_data import ImageData
from tfdeq.data.token_data import SPLITS

SUFFIXES = (".png", ".jpg", ".jpeg")
VALIDATION_SHARE, TEST_SHARE = 0.1, 0.1
_INSTRUCTIONS = (
    "Name a folder that holds one folder of PNG or JPEG pictures for each class: "
    "FOLDER/cat/1.png, FOLDER/dog/1.jpg."
)


def load(*, data_dir: str | None = None, image_size: int = 32) -> ImageData:
    """Loads pictures of one's own, brought to one size.

    The name of the folder in `data_dir` is the class; folders within it may be nested. About 80 % of the
    pictures are for training, 10 % for validation and 10 % for the test, by a hash of each picture's
    content: so the splits are the same in every run, and copies of a picture, whatever their names, are
    in one split. Pictures are grey if all of them are; else all have three colours. Transparency is
    left out.

    Args:
        data_dir: the folder.
        image_size: rows and columns of the result; a picture is scaled without regard to its proportions.

    Raises:
        FileNotFoundError, NotADirectoryError: `data_dir` is no folder.
        ValueError: no `data_dir`, a picture that cannot be read, fewer than two classes, a class without
            pictures, or too few pictures for three splits.
    """
    root = folders.required_folder(data_dir, _INSTRUCTIONS)
    paths = _pictures_by_class(root)
    decoded, labels = [], []
    for label, files in enumerate(paths.values()):
        for path in files:
            decoded.append(_decoded(path))
            labels.append(label)
    found = splits.keys(decoded)
    _warn_of_copies(found, labels, [path for files in paths.values() for path in files])
    channels = max(picture.shape[-1] for picture in decoded)
    shape = (image_size, image_size, channels)
    pictures = np.stack([encoded.resized(picture, shape) for picture in decoded])
    place = splits.shares(found, VALIDATION_SHARE, TEST_SHARE)
    classes = np.array(labels, np.int32)
    parts = [(pictures[place == which], classes[place == which]) for which in range(3)]
    _check_parts(parts, root)
    return ImageData(Examples(*parts), tuple(paths))


def _pictures_by_class(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    kinds = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    if len(kinds) < 2:
        raise ValueError(
            f"--data_dir={str(root)!r} must hold a folder for each of at least two classes; it holds "
            f"{folders.listing(root)}. {_INSTRUCTIONS}"
        )
    found, others = {}, 0
    for kind in kinds:
        files = sorted(path for path in kind.rglob("*") if path.is_file() and path.name[0] != ".")
        found[kind.name] = [path for path in files if path.suffix.lower() in SUFFIXES]
        others += len(files) - len(found[kind.name])
        if not found[kind.name]:
            raise ValueError(
                f"The class {kind.name!r} in {str(root)!r} has no PNG or JPEG pictures. Add some, or remove "
                "its folder."
            )
    if others:
        logging.warning("Left out %d files in %s that are no PNG or JPEG.", others, root)
    return found


def _decoded(path: pathlib.Path) -> np.ndarray:
    """[H, W, 1 or 3] uint8."""
    try:
        return encoded.decoded(path.read_bytes()).numpy()
    except tf.errors.InvalidArgumentError as error:
        reason = str(error.message).splitlines()[0][:200]
        raise ValueError(
            f"The picture {str(path)!r} cannot be read: {reason}. Replace or remove the file."
        ) from error


def _warn_of_copies(found: np.ndarray, labels: list[int], paths: list[pathlib.Path]) -> None:
    first: dict[int, int] = {}
    for place, key in enumerate(found.tolist()):
        other = first.setdefault(key, place)
        if labels[other] != labels[place]:
            logging.warning(
                "The same picture is of two classes: %s and %s.", paths[other], paths[place]
            )


def _check_parts(parts: list, root: pathlib.Path) -> None:
    for split, (pictures, _) in zip(SPLITS, parts, strict=True):
        if not len(pictures):
            total = sum(len(part[0]) for part in parts)
            raise ValueError(
                f"{str(root)!r} holds {total:,} pictures, which leaves the {split} split empty. Add more "
                "pictures."
            )
