"""ptb: the Penn Treebank as words, in Mikolov's preprocessing (10,000 types)."""

from typing import ClassVar

from tfdeq.data.text import words
from tfdeq.data.token_data import TokenData

PUBLISHED = words.Counts(
    tokens={"train": 929_589, "validation": 73_760, "test": 82_430}, types=10_000
)


class Ptb(words.WordsBuilder, skip_registration=True):
    """Penn Treebank (Wall Street Journal), lower-cased words, numbers as N, rare words as <unk>."""

    name = "tfdeq_ptb"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put ptb.train.txt, ptb.valid.txt and ptb.test.txt (folder `data` of Mikolov's "
        "simple-examples.tgz) into one folder and name it with --data_dir."
    )
    FILES: ClassVar = {
        "train": "ptb.train.txt",
        "validation": "ptb.valid.txt",
        "test": "ptb.test.txt",
    }


def load(*, data_dir: str | None = None, prepared_dir: str | None = None) -> TokenData:
    """Loads ptb.{train,valid,test}.txt, plain or .gz, from `data_dir`; see `words.load`."""
    return words.load(Ptb, PUBLISHED, data_dir=data_dir, prepared_dir=prepared_dir)
