"""`TokenData`: the result of loading a data set of text."""

import hashlib
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

SPLITS = ("train", "validation", "test")
"""The names of a data set's parts."""


class TokenData(NamedTuple):
    """Three streams of token ids, in reading order, and the meaning of the ids."""

    train: np.ndarray  # [N_train] uint8 for bytes, int32 for words; read-only
    validation: np.ndarray  # [N_validation], same dtype
    test: np.ndarray  # [N_test], same dtype
    vocabulary_size: int  # every id is in [0, vocabulary_size)
    unit: Literal["byte", "word"]  # the kind of token
    vocabulary: tuple[str, ...] | None  # words by id; None for bytes, whose id is their value
    fingerprint: str  # hex SHA-256 of the streams and the vocabulary: equal only for equal data


def token_data(
    streams: Mapping[str, np.ndarray],
    *,
    vocabulary_size: int,
    unit: Literal["byte", "word"],
    vocabulary: tuple[str, ...] | None = None,
) -> TokenData:
    """Checks three streams and computes their fingerprint.

    Args:
        streams: the [N] integer token ids of "train", "validation" and "test".
        vocabulary_size: number of ids.
        unit: "byte" or "word".
        vocabulary: the words by id, or None.

    Returns:
        The TokenData; its arrays are read-only.

    Raises:
        ValueError: if a stream is empty.
    """
    digest = hashlib.sha256(repr((unit, vocabulary_size)).encode())
    for word in vocabulary or ():
        digest.update(word.encode() + b"\n")
    for split in SPLITS:
        stream = streams[split]
        if stream.size == 0:
            sizes = ", ".join(f"{name} {streams[name].size:,}" for name in SPLITS)
            raise ValueError(
                f"The {split} split is empty ({unit}s received: {sizes}). Give more text."
            )
        # The length separates the streams, so that moving the border between two changes the
        # digest.
        digest.update(f"{split} {stream.dtype.str} {stream.size}\n".encode())
        digest.update(np.ascontiguousarray(stream).data)
        stream.flags.writeable = False
    return TokenData(
        *(streams[split] for split in SPLITS),
        vocabulary_size=vocabulary_size,
        unit=unit,
        vocabulary=vocabulary,
        fingerprint=digest.hexdigest(),
    )
