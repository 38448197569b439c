"""wikitext103: WikiText-103 (Merity et al. 2016, arXiv:1609.07843) as words, 267,735 types."""

from tfdeq.data.text import words
from tfdeq.data.text.wikitext2 import Wikitext2
from tfdeq.data.token_data import TokenData

PUBLISHED = words.Counts(
    tokens={"train": 103_227_021, "validation": 217_646, "test": 245_569}, types=267_735
)


class Wikitext103(Wikitext2, skip_registration=True):
    """Good and featured Wikipedia articles as words, rare words as <unk>; the larger of the two sets."""

    name = "tfdeq_wikitext103"
    MANUAL_DOWNLOAD_INSTRUCTIONS = Wikitext2.MANUAL_DOWNLOAD_INSTRUCTIONS.replace(
        "wikitext-2-v1.zip", "wikitext-103-v1.zip"
    )


def load(*, data_dir: str | None = None, prepared_dir: str | None = None) -> TokenData:
    """Loads wiki.{train,valid,test}.tokens, plain or .gz, from `data_dir`; see `words.load`."""
    return words.load(Wikitext103, PUBLISHED, data_dir=data_dir, prepared_dir=prepared_dir)
