"""Near-copies: documents that share many of their lines belong to one group."""

import collections
import itertools
from collections.abc import Sequence

from tfdeq.data.prepared import Document

# Changing these changes splits: then increase the VERSION of the builders in python_stdlib.py and
# files.py.

# Smallest length in bytes, without white space at the ends, of lines that distinguish documents;
# shorter ones, such as `else:`, occur everywhere.
TELLING = 10
# A line in at most this many documents is special to them; a line in more, such as that of a
# licence, is common.
SPECIAL = 20
# The share of the smaller document's telling lines that near-copies have in common: of the special
# lines, or of all.
SPECIAL_SHARE = 0.05
SHARE = 0.5
# Also the smallest number of shared bytes: otherwise small files would connect all others by a line
# or two.
LEAST = 200


def groups(documents: Sequence[Document]) -> list[list[int]]:
    """Groups documents that are near-copies of each other, including copies of copies.

    Lines of at least 10 bytes count, without white space at their ends, once per document. Two
    documents belong together if their common lines are at least 200 bytes and half of the lines of the
    smaller document, in bytes, or 5 % of them without lines that occur in more than 20 documents.
    Documents with the same content also belong together. Groups are the connected components of that
    relation.

    A line in more than 20 documents is counted only for pairs of documents that are adjacent in the
    list of these documents. This keeps the time proportional to the length of the text, and suffices
    because copies have the same such lines.

    Args:
        documents: N documents.

    Returns:
        The groups, lists of indices below N; both are in ascending order.
    """
    lines = [telling_lines(document.text) for document in documents]
    sizes = [sum(map(len, own)) for own in lines]
    first: dict[bytes, int] = {}
    copies = [(first.setdefault(d.text, index), index) for index, d in enumerate(documents)]
    return _connected(len(documents), [*copies, *_near(lines, sizes)])


def telling_lines(text: bytes) -> set[bytes]:
    """Returns the distinct lines of a text, without white space at their ends, that are long enough."""
    return {line for line in map(bytes.strip, text.split(b"\n")) if len(line) >= TELLING}


def _near(lines: Sequence[set[bytes]], sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the pairs of documents that share enough."""
    holders: dict[bytes, list[int]] = collections.defaultdict(list)
    for index, own in enumerate(lines):
        for line in own:
            holders[line].append(index)
    special: dict[tuple[int, int], int] = collections.Counter()
    common: dict[tuple[int, int], int] = collections.Counter()
    for line, found in holders.items():
        if len(found) > SPECIAL:
            for pair in itertools.pairwise(found):
                common[pair] += len(line)
        else:
            for pair in itertools.combinations(found, 2):
                special[pair] += len(line)
    pairs = []
    for pair in {*special, *common}:
        size = min(sizes[index] for index in pair)
        both = special[pair] + common[pair]
        if special[pair] >= max(LEAST, SPECIAL_SHARE * size) or both >= max(LEAST, SHARE * size):
            pairs.append(pair)
    return pairs


def _connected(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Returns the connected components of a graph."""
    parents = list(range(count))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for pair in pairs:
        one, other = sorted(map(root, pair))
        parents[other] = one
    members: dict[int, list[int]] = {}
    for index in range(count):
        members.setdefault(root(index), []).append(index)
    return list(members.values())
