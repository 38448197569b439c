"""wikitext2: WikiText-2 (Merity et al. 2016, arXiv:1609.07843) as words, 33,278 types."""

from typing import ClassVar

from tfdeq.data.text import words
from tfdeq.data.token_data import TokenData

PUBLISHED = words.Counts(
    tokens={"train": 2_088_628, "validation": 217_646, "test": 245_569}, types=33_278
)


class Wikitext2(words.WordsBuilder, skip_registration=True):
    """Good and featured Wikipedia articles as words, rare words as <unk>."""

    name = "tfdeq_wikitext2"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens, each plain or .gz, from "
        "the word-level archive (wikitext-2-v1.zip, not the raw one) into one folder and name it "
        "with --data_dir."
    )
    FILES: ClassVar = {
        "train": "wiki.train.tokens",
        "validation": "wiki.valid.tokens",
        "test": "wiki.test.tokens",
    }


def load(*, data_dir: str | None = None, prepared_dir: str | None = None) -> TokenData:
    """Loads wiki.{train,valid,test}.tokens, plain or .gz, from `data_dir`; see `words.load`."""
    return words.load(Wikitext2, PUBLISHED, data_dir=data_dir, prepared_dir=prepared_dir)
