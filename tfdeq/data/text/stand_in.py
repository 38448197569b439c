"""Random tokens with a corpus's published sizes, to inspect a model before the data are available."""

import numpy as np

from tfdeq.data.text.words import Counts
from tfdeq.data.token_data import SPLITS, TokenData, token_data

LONGEST = 2**20  # largest number of tokens in a split


def stand_in(published: Counts, unit: str) -> TokenData:
    """Returns streams of random tokens with frequencies like those of words, p(token) ∝ 1 / (1 + id).

    Args:
        published: the corpus's sizes; a split has at most 2^20 tokens.
        unit: "byte" or "word".
    """
    types = 256 if unit == "byte" else published.types
    share = 1.0 / np.arange(1, published.types + 1)
    random = np.random.default_rng(0)
    streams = {
        split: random.choice(
            published.types, min(published.tokens[split], LONGEST), p=share / share.sum()
        ).astype("uint8" if unit == "byte" else "int32")
        for split in SPLITS
    }
    return token_data(streams, vocabulary_size=types, unit=unit)
