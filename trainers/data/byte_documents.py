"""Bytes: splits documents into train, validation and test, and joins them to byte streams."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from trainers.data.prepared import Document
from trainers.data.token_data import SPLITS, TokenData, token_data

VALIDATION_SHARE = 0.05
TEST_SHARE = 0.05


def split_by_file(
    documents: Sequence[Document], keys: Sequence[bytes]
) -> dict[str, list[Document]]:
    """Assigns whole documents to splits by a hash of their keys, about 90/5/5.

    A document stays in its split when others come and go. Where chance would leave validation or
    test empty, the documents with the smallest hashes fill them.

    Args:
        documents: the documents, three at least.
        keys: what to hash, one a document. Documents with equal keys share a split, but for that
            filling.

    Returns:
        The documents of each split, in the order given.
    """
    hashes = [int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64 for key in keys]
    tests = max(1, sum(value < TEST_SHARE for value in hashes))
    held_out = sum(value < TEST_SHARE + VALIDATION_SHARE for value in hashes)
    held_out = max(tests + 1, held_out)
    order = sorted(range(len(documents)), key=hashes.__getitem__)
    chosen = {
        "test": order[:tests],
        "validation": order[tests:held_out],
        "train": order[held_out:],
    }
    return {split: [documents[index] for index in sorted(chosen[split])] for split in SPLITS}


def split_within_files(documents: Sequence[Document]) -> dict[str, list[Document]]:
    """Cuts every document contiguously: its first 90 % train, then 5 % validation, 5 % test."""
    parts: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for path, text in documents:
        first = round(len(text) * (1 - VALIDATION_SHARE - TEST_SHARE))
        second = round(len(text) * (1 - TEST_SHARE))
        for split, part in zip(
            SPLITS, (text[:first], text[first:second], text[second:]), strict=True
        ):
            if part:
                parts[split].append(Document(path, part))
    return parts


def byte_data(texts: Mapping[str, Iterable[bytes]]) -> TokenData:
    """Returns byte streams: the texts of a split joined with one newline byte between them."""
    streams = {split: np.frombuffer(b"\n".join(texts[split]), np.uint8) for split in SPLITS}
    return token_data(streams, vocabulary_size=256, unit="byte")
