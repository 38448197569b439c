"""Tests of tfdeq.data.text.words and the data sets of words."""

import collections
import gzip
import pathlib

import numpy as np
import pytest

from tfdeq import data
from tfdeq.data.text import ptb, wikitext2, words

TEXTS = {
    "train": b"b a c a\n\n <unk> b a \nb d",  # no newline at the end
    "validation": b"a e\n",
    "test": b" = d = \n \n",
}
COUNTS = words.Counts(tokens={"train": 13, "validation": 3, "test": 5}, types=6)


def _write(folder: pathlib.Path, texts=TEXTS, builder_class=ptb.Ptb) -> dict:
    folder.mkdir(exist_ok=True)
    for split, name in builder_class.FILES.items():
        (folder / name).write_bytes(texts[split])
    return {"data_dir": str(folder), "prepared_dir": str(folder.parent / "prepared")}


@pytest.fixture
def published(monkeypatch):
    """Makes the small texts pass for the published corpora."""
    for module in (ptb, wikitext2):
        monkeypatch.setattr(module, "PUBLISHED", COUNTS)


def test_published_counts():
    assert ptb.PUBLISHED == ({"train": 929_589, "validation": 73_760, "test": 82_430}, 10_000)
    assert wikitext2.PUBLISHED == (
        {"train": 2_088_628, "validation": 217_646, "test": 245_569},
        33_278,
    )


def test_words_of_ends_every_line():
    assert words.words_of(b"") == []
    assert words.words_of(b"\n") == [b"<eos>"]
    assert words.words_of(b"a  b\r\n\n c") == [b"a", b"b", b"<eos>", b"<eos>", b"c", b"<eos>"]
    # Only a line feed ends a line, and only ASCII blanks separate words.
    separators = "a\u2028b\x85c\u00a0d".encode()
    assert words.words_of(separators) == [separators, b"<eos>"]


@pytest.mark.parametrize(("name", "module"), [("ptb", ptb), ("wikitext2", wikitext2)])
def test_ids_go_by_frequency_then_code_point(name, module, tmp_path, published):
    builder_class = {"ptb": ptb.Ptb, "wikitext2": wikitext2.Wikitext2}[name]
    loaded = data.load(name, **_write(tmp_path / "original", builder_class=builder_class))
    # <eos> 4 times, a and b 3 times, the others once; "<" comes before letters.
    assert loaded.vocabulary == ("<eos>", "a", "b", "<unk>", "c", "d")
    assert loaded.vocabulary_size == 6
    assert loaded.unit == "word"
    np.testing.assert_array_equal(loaded.train, [2, 1, 4, 1, 0, 0, 3, 2, 1, 0, 2, 5, 0])
    np.testing.assert_array_equal(loaded.validation, [1, 3, 0])  # e is unknown
    np.testing.assert_array_equal(loaded.test, [3, 5, 3, 0, 0])
    counts = collections.Counter(loaded.train.tolist())
    assert [counts[i] for i in range(6)] == sorted(counts.values(), reverse=True)


def test_gzip_gives_the_same(tmp_path, published):
    options = _write(tmp_path / "original")
    plain = data.load("ptb", **options)
    for file in (tmp_path / "original").iterdir():
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    assert data.load("ptb", **options).fingerprint == plain.fingerprint


@pytest.mark.parametrize("split", data.SPLITS)
def test_wrong_token_count(split, tmp_path, published):
    texts = TEXTS | {split: TEXTS[split].rstrip(b"\n ") + b"\na a\n"}
    received = len(words.words_of(texts[split]))
    expected = COUNTS.tokens[split]
    match = f"{split} tokens: {received} received, {expected} expected"
    with pytest.raises(ValueError, match=match):
        data.load("ptb", **_write(tmp_path / "original", texts))
    assert not (tmp_path / "prepared").exists()


def test_wrong_type_count(tmp_path, published):
    texts = TEXTS | {"train": TEXTS["train"].replace(b"d", b"a")}
    with pytest.raises(ValueError, match="types: 5 received, 6 expected"):
        data.load("ptb", **_write(tmp_path / "original", texts))
    assert not (tmp_path / "prepared").exists()


def test_empty_file(tmp_path, published):
    with pytest.raises(ValueError, match="test tokens: 0 received, 5 expected"):
        data.load("ptb", **_write(tmp_path / "original", TEXTS | {"test": b""}))


def test_other_files_of_equal_counts_are_prepared_anew(tmp_path, published):
    before = data.load("ptb", **_write(tmp_path / "original"))
    swapped = TEXTS | {"train": TEXTS["train"].replace(b"c", b"z")}
    after = data.load("ptb", **_write(tmp_path / "original", swapped))
    assert after.vocabulary == ("<eos>", "a", "b", "<unk>", "d", "z")
    assert after.fingerprint != before.fingerprint


def test_unknown_word_without_unk():
    texts = {"train": b"a b\n", "validation": b"a\n", "test": b"c\n"}
    counts = words.Counts(tokens={"train": 3, "validation": 2, "test": 2}, types=3)
    with pytest.raises(ValueError, match="no '<unk>'"):
        words.word_data(texts, counts)


@pytest.mark.parametrize("name", ["ptb", "wikitext2"])
def test_no_folder_named(name, tmp_path):
    with pytest.raises(ValueError, match="no --data_dir was given. Put .*train"):
        data.load(name, prepared_dir=str(tmp_path / "prepared"))


def test_missing_file_lists_what_is_there(tmp_path):
    options = _write(tmp_path / "original")
    (tmp_path / "original" / "ptb.valid.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"Neither ptb.valid.txt nor ptb.valid.txt.gz.*holds ptb.test.txt"
    ):
        data.load("ptb", **options)
    (tmp_path / "original" / "ptb.valid.txt").mkdir()  # a folder instead of a file
    with pytest.raises(FileNotFoundError, match="Neither ptb.valid.txt"):
        data.load("ptb", **options)
    assert not (tmp_path / "prepared").exists()


def test_unreadable_bytes(tmp_path, published):
    options = _write(tmp_path / "original", TEXTS | {"test": b"\xff\xfe d\n"})
    with pytest.raises(ValueError, match=r"ptb.test.txt' cannot be read as UTF-8 text"):
        data.load("ptb", **options)
    file = tmp_path / "original" / "ptb.test.txt"
    file.unlink()
    compressed = gzip.compress(TEXTS["test"] * 100)
    for broken in (b"plain text", compressed[:-20], compressed[:12] + b"\xff" * 20):
        file.with_name("ptb.test.txt.gz").write_bytes(broken)
        with pytest.raises(ValueError, match=r"test.txt.gz' cannot be read as gzip of UTF-8"):
            data.load("ptb", **options)
    assert not (tmp_path / "prepared").exists()
