"""Near-copies: documents that share many of their lines belong to one group."""

import collections
import itertools
from collections.abc import Sequence

from tfdeq.data.prepared import Document

# Who changes these changes splits: raise the VERSION of the builders in python_stdlib.py and text.py.

# Bytes of a line, without the white space at its ends, from which on it tells documents apart; shorter
# ones, such as `else:`, stand anywhere.
TELLING = 10
# Documents that a line may stand in and be special to them; one in more, of a licence, is common.
SPECIAL = 20
# What two documents share of the smaller one's telling lines if they are near-copies: of special lines
# alone, or of all.
SPECIAL_SHARE = 0.05
SHARE = 0.5
# And in bytes, at least: small files would tie all others together by a line or two.
LEAST = 200


def groups(documents: Sequence[Document]) -> list[list[int]]:
    """Puts documents that are near-copies of each other, and copies of copies, into groups.

    Lines count without white space at their ends, once a document, from 10 bytes on. Two documents
    belong together if the lines that both have are half of those of the smaller document, in bytes,
    or 5 % of them without lines that more than 20 documents have; and 200 bytes at least. So do
    documents of the same content. Groups are the connected parts of that relation.

    A line that more than 20 documents have is counted for those documents that are neighbours among
    them alone, which keeps the time in proportion to the text: copies have the same such lines.

    Args:
        documents: N documents.

    Returns:
        The groups, lists of the N indices; both in rising order.
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
    """The pairs of documents that share enough."""
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
    """The connected parts of a graph of so many nodes."""
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
