"""Splits by content: the same in every run, and equal pictures always together."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from tfdeq.data.examples import Examples, Split


def keys(pictures: Iterable[np.ndarray]) -> np.ndarray:
    """Returns [N] uint64, a hash of each picture's shape and values: equal pictures have equal ones."""
    return np.array([_key(np.ascontiguousarray(picture)) for picture in pictures], np.uint64)


def set_aside(training: Split, test: Split, count: int) -> Examples:
    """Returns splits whose validation pictures are some of the training pictures.

    They are those of the smallest hashes of their contents. So they are the same in every run, whatever the
    order of the pictures, and copies of a picture are all in one of the two splits.

    Args:
        training, test: (pictures [N, H, W, C] uint8, classes [N]).
        count: how many to set aside, in [1, N); copies of the last one are added.

    Raises:
        ValueError: no such number of pictures.
    """
    total = len(training[0])
    if not 1 <= count < total:
        raise ValueError(
            f"--validation_pictures={count} of {total:,} training pictures; give at least 1 and fewer than "
            "there are."
        )
    found = keys(training[0])
    aside = found <= np.partition(found, count - 1)[count - 1]
    if aside.all():
        raise ValueError(
            f"The {total:,} training pictures are too much alike: no two parts of them."
        )
    return Examples(_rows(training, ~aside), _rows(training, aside), test)


def shares(found: np.ndarray, validation: float, test: float) -> np.ndarray:
    """Returns [N] of 0, 1 and 2: whether a picture is for training, validation or test.

    A picture's hash alone decides, so a picture that is added moves no other one.

    Args:
        found: [N], from `keys`.
        validation, test: expected shares of the pictures, in [0, 1].
    """
    place = found / 2.0**64
    return np.where(place < test, 2, np.where(place < test + validation, 1, 0))


def part(split: Split, count: int) -> Split:
    """Returns `count` of a split's pictures, in their order: those of the smallest hashes.

    count: 0, or more than there are: all of them.
    """
    if not 0 < count < len(split[0]):
        return split
    kept = np.sort(np.argsort(keys(split[0]), kind="stable")[:count])
    return _rows(split, kept)


def _rows(split: Split, rows: np.ndarray | Sequence[int]) -> Split:
    return split[0][rows], split[1][rows]


def _key(picture: np.ndarray) -> int:
    digest = hashlib.blake2b(f"{picture.shape} {picture.dtype.str}\n".encode(), digest_size=8)
    digest.update(picture.data)
    return int.from_bytes(digest.digest(), "little")
