"""ptb_characters: the Penn Treebank's words in Mikolov's preprocessing, as characters."""

from tfdeq.data import folders, prepared
from tfdeq.data.text import byte_documents, words
from tfdeq.data.text.ptb import Ptb
from tfdeq.data.token_data import SPLITS, TokenData

PUBLISHED = words.Counts(
    tokens={"train": 5_017_482, "validation": 393_042, "test": 442_423}, types=50
)


class PtbCharacters(Ptb, skip_registration=True):
    """Penn Treebank (Wall Street Journal), characters of the lower-cased words and the spaces."""

    name = "tfdeq_ptb_characters"


def load(*, data_dir: str | None = None, prepared_dir: str | None = None) -> TokenData:
    """Loads the characters of ptb.{train,valid,test}.txt, plain or .gz, from `data_dir`.

    These are the same files as for words. The words of a line are joined by single spaces, and the line
    ends in a newline.

    Returns:
        Bytes; the training split has 50 different ones.

    Raises:
        FileNotFoundError, NotADirectoryError: if there is no such folder, or no such file in it.
        ValueError: if no folder is given, or if the files have other sizes than the published ones.
    """
    instructions = Ptb.MANUAL_DOWNLOAD_INSTRUCTIONS
    folder = folders.required_folder(data_dir, instructions)
    sources = words.read_documents(folder, Ptb.FILES, instructions)
    config_name = prepared.content_name("characters", (sources[split][0] for split in SPLITS))

    def make_builder() -> PtbCharacters:
        return PtbCharacters(config_name=config_name, prepared_dir=prepared_dir)

    texts = {split: [sources[split][0].text] for split in SPLITS}
    if not prepared.is_prepared(make_builder):
        # Raises an error for other files before anything is written.
        character_data(texts, PUBLISHED)
    return character_data(prepared.read_texts(make_builder, manual_dir=str(folder)), PUBLISHED)


def character_data(texts: dict[str, list[bytes]], published: words.Counts) -> TokenData:
    """Returns the characters of three texts; see `load`."""
    lines = {split: b"".join(texts[split]).splitlines() for split in SPLITS}
    joined = {
        split: b"".join(b" ".join(line.split()) + b"\n" for line in lines[split])
        for split in SPLITS
    }
    tokens = {split: len(text) for split, text in joined.items()}
    words.check_counts(tokens, len(set(joined["train"])), published)
    return byte_documents.byte_data({split: [text] for split, text in joined.items()})
