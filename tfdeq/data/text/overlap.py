"""How much of validation and test consists of lines that also occur in the training text."""

from collections.abc import Sequence

import numpy as np

from tfdeq.data.token_data import SPLITS, TokenData

LENGTHS = (1, 10, 20, 40)  # smallest length of a line, in bytes
PASSAGE = 3  # lines

_EXPLAINED = (
    "share of the bytes of validation and test that stand in lines which the training text",
    "has too. Blank lines, and white space at the ends of lines, do not count.",
)


def texts(data: TokenData) -> dict[str, bytes]:
    """Returns the texts of train, validation and test; for words, each `<eos>` ends a line."""
    streams = {split: getattr(data, split) for split in SPLITS}
    if data.vocabulary is None:
        return {split: stream.tobytes() for split, stream in streams.items()}
    words = [b"\n" if word == "<eos>" else word.encode() for word in data.vocabulary]
    return {split: b" ".join(words[i] for i in stream) for split, stream in streams.items()}


def overlap(training: bytes, other: bytes, at_least: int = 1, passage: int = 1) -> float:
    """Returns the share of a text's bytes in lines that also occur in the training text.

    White space at the ends of a line and blank lines do not count.

    Args:
        training: the training text. other: that of validation or test.
        at_least: smallest length, in bytes, of lines that can count as known; shorter ones are part of
            the text, but count as new.
        passage: number of consecutive lines that both texts must have for them to count as known.

    Returns:
        A number in [0, 1]; 0 for a text without lines.
    """
    known = set(_passages(_lines(training), passage))
    lines = _lines(other)
    found = np.zeros(len(lines), bool)
    for place, lines_there in enumerate(_passages(lines, passage)):
        if lines_there in known:
            found[place : place + passage] = True
    sizes = np.array([len(line) for line in lines], np.int64)
    return float(sizes[found & (sizes >= at_least)].sum() / max(sizes.sum(), 1))


def report(name: str, data: TokenData) -> list[str]:
    """Returns the shares of validation and test, line by line.

    Args:
        name: name of the data set. data: its tokens.
    """
    found = texts(data)
    rows = [("all lines", {})]
    rows += [(f"lines of at least {n} bytes", {"at_least": n}) for n in LENGTHS if n > 1]
    rows.append((f"passages of at least {PASSAGE} lines", {"passage": PASSAGE}))
    lines = [f"{name}: {_EXPLAINED[0]}", _EXPLAINED[1], f"{'':30}{'validation':>12}{'test':>8}"]
    for which, options in rows:
        shares = [
            overlap(found["train"], found[split], **options) for split in ("validation", "test")
        ]
        lines.append(f"{which:30}{shares[0]:>12.1%}{shares[1]:>8.1%}")
    sizes = ", ".join(f"{split} {len(text):,}" for split, text in found.items())
    return [*lines, f"Bytes: {sizes}."]


def _lines(text: bytes) -> list[bytes]:
    return [line for line in map(bytes.strip, text.split(b"\n")) if line]


def _passages(lines: Sequence[bytes], length: int) -> list[tuple[bytes, ...]]:
    return list(zip(*(lines[start:] for start in range(length)), strict=False))
