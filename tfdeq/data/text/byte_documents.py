"""Splits documents into train, validation and test, and joins them to byte streams."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from absl import logging

from tfdeq.data.prepared import Document
from tfdeq.data.text.near_copies import groups
from tfdeq.data.token_data import SPLITS, TokenData, token_data

VALIDATION_SHARE = 0.05
TEST_SHARE = 0.05
# Largest share of its split that a group may have, except in training.
LARGEST_SHARE = 0.25


def split_by_groups(
    documents: Sequence[Document], keys: Sequence[bytes]
) -> dict[str, list[Document]] | None:
    """Assigns whole groups of near-copies to splits, 90/5/5 by bytes.

    Groups come from `near_copies.groups`. In the order of a hash of their keys, they fill the test
    split up to 5 % of all bytes, then validation; the last group of a split is included if that brings
    it closer to 5 %. All others are for training, and so are groups larger than a quarter of a split,
    which would dominate it. If documents are added, removed or changed a little, groups keep their
    splits, except a few near the borders.

    Args:
        documents: the documents.
        keys: one key per document, to be hashed; the smallest key in a group is the group's.

    Returns:
        The documents of each split, in the given order; None if groups that are small enough make up
        less than half of the bytes, too few for separate splits.
    """
    members = groups(documents)
    sizes = [sum(len(documents[index].text) for index in group) for group in members]
    total = sum(sizes)
    limit = LARGEST_SHARE * min(TEST_SHARE, VALIDATION_SHARE) * total
    small = [place for place, size in enumerate(sizes) if size <= limit]
    if 2 * sum(sizes[place] for place in small) < total:
        return None
    small.sort(key=lambda place: hashlib.sha256(min(keys[i] for i in members[place])).digest())
    split_of = dict.fromkeys(range(len(documents)), "train")
    waiting = iter(small)
    for split, share in (("test", TEST_SHARE), ("validation", VALIDATION_SHARE)):
        missing = share * total
        for place in waiting:
            # The group in which a split ends goes to training if it does not go to this split.
            if sizes[place] > 2 * missing:
                break
            split_of.update(dict.fromkeys(members[place], split))
            missing -= sizes[place]
    return {
        split: [document for index, document in enumerate(documents) if split_of[index] == split]
        for split in SPLITS
    }


def split_within_files(documents: Sequence[Document]) -> dict[str, list[Document]]:
    """Divides each document in order: the first 90 % train, then 5 % validation, 5 % test.

    Documents with near-copies go to training as a whole, because what is cut off one copy may be
    elsewhere in another. More is cut off the other documents, so that the shares are those of all
    bytes. If near-copies are more than half of the bytes, all documents are divided.

    Args:
        documents: the documents.

    Returns:
        The parts of each split, in the given order.
    """
    total = sum(len(document.text) for document in documents)
    alone = {group[0] for group in groups(documents) if len(group) == 1}
    bytes_alone = sum(len(documents[index].text) for index in alone)
    if 2 * bytes_alone < total:
        logging.warning(
            "Most of the text is in files that share many lines, so parts of the validation and test "
            "text also occur in the training text. To see how much, run python -m trainers.overlap"
        )
        alone, bytes_alone = set(range(len(documents))), total
    scale = total / bytes_alone
    parts: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for index, (path, text) in enumerate(documents):
        cut = scale if index in alone else 0.0
        first = round(len(text) * (1 - cut * (VALIDATION_SHARE + TEST_SHARE)))
        second = round(len(text) * (1 - cut * TEST_SHARE))
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
