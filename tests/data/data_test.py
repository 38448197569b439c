"""Tests of tfdeq.data: properties of all data sets, and the data sets of bytes."""

import dataclasses
import logging as python_logging
import pathlib
import random
import sysconfig
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.support.cases import fast
from tfdeq import data
from tfdeq.data import prepared
from tfdeq.data.text import files as text_files
from tfdeq.data.text import ptb, ptb_characters, python_stdlib, wikitext2, wikitext103, words

LINES = "the cat sat on the mat\n the <unk> dog ran \n\na cat and a dog ran and ran\n"


def _write_words(folder: pathlib.Path, builder_class) -> words.Counts:
    """Writes a small corpus in a builder's layout and returns its counts."""
    texts = {"train": LINES * 40, "validation": LINES * 5, "test": LINES * 6 + "zebra\n"}
    for split, name in builder_class.FILES.items():
        (folder / name).write_text(texts[split])
    tokens = {split: len(text.split()) + text.count("\n") for split, text in texts.items()}
    return words.Counts(tokens=tokens, types=len(set(LINES.split())) + 1)


def _words_options(module, builder_class):
    def options(tmp_path, monkeypatch):
        folder = tmp_path / "original"
        folder.mkdir()
        monkeypatch.setattr(module, "PUBLISHED", _write_words(folder, builder_class))
        return {"data_dir": str(folder), "prepared_dir": str(tmp_path / "prepared")}

    return options


def _character_options(tmp_path, monkeypatch):
    options = _words_options(ptb_characters, ptb.Ptb)(tmp_path, monkeypatch)
    folder = pathlib.Path(options["data_dir"])
    joined = {}
    for split, name in ptb.Ptb.FILES.items():
        lines = (folder / name).read_text().splitlines()
        joined[split] = "".join(" ".join(line.split()) + "\n" for line in lines)
    tokens = {split: len(characters) for split, characters in joined.items()}
    published = words.Counts(tokens=tokens, types=len(set(joined["train"])))
    monkeypatch.setattr(ptb_characters, "PUBLISHED", published)
    return options


def _stdlib_options(tmp_path, monkeypatch):
    """Selects the short files of the real library, so that no split is too small."""
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
    for document in python_stdlib.source_documents(folder):
        if len(document.text) < 6000:
            path = tmp_path / "library" / document.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(document.text)
    paths = types.SimpleNamespace(get_paths=lambda: {"stdlib": str(tmp_path / "library")})
    monkeypatch.setattr(python_stdlib, "sysconfig", paths)
    return {"prepared_dir": str(tmp_path / "prepared")}


def _text_options(tmp_path, monkeypatch):
    del monkeypatch
    _write_files(tmp_path / "files", 30)
    return {"files": str(tmp_path / "files/**/*.txt"), "prepared_dir": str(tmp_path / "prepared")}


def _write_files(folder: pathlib.Path, count: int) -> list[bytes]:
    """Writes files with different contents: bytes that are not UTF-8, and NUL at the ends."""
    contents = [
        f"\nfile {i}: ".encode() + bytes(random.Random(i).sample(range(256), 256)) + b"\0\0"
        for i in range(count)
    ]
    for i, content in enumerate(contents):
        path = folder / f"part{i % 3}" / f"{i:03d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return contents


def _shakespeare_options(tmp_path, monkeypatch):
    folder = tmp_path / "original"
    folder.mkdir()
    _pretend_original(folder / "input.txt", monkeypatch)
    return {"data_dir": str(folder), "prepared_dir": str(tmp_path / "prepared")}


def _pretend_original(file: pathlib.Path, monkeypatch) -> None:
    """Writes a small file and makes TFDS accept it as the original."""
    file.write_text("".join(f"{i}: Speak, speak.\n" for i in range(100)))
    url_infos = tfds.builder_cls("tiny_shakespeare").url_infos
    ((url, original),) = url_infos.items()
    received = tfds.core.download.checksums.compute_url_info(file)
    small = dataclasses.replace(original, size=received.size, checksum=received.checksum)
    monkeypatch.setitem(url_infos, url, small)


# A small source for each data set; add a line here for a new one.
OPTIONS = {
    "ptb": _words_options(ptb, ptb.Ptb),
    "ptb_characters": _character_options,
    "python_stdlib": _stdlib_options,
    "text": _text_options,
    "tiny_shakespeare": _shakespeare_options,
    "wikitext2": _words_options(wikitext2, wikitext2.Wikitext2),
    "wikitext103": _words_options(wikitext103, wikitext103.Wikitext103),
}


@pytest.mark.parametrize(
    "name", fast(["python_stdlib", "text", "wikitext2"], sorted(data.DATASETS))
)
def test_ranges_and_splits(name, tmp_path, monkeypatch):
    options = OPTIONS[name](tmp_path, monkeypatch)
    loaded = data.load(name, **options)

    assert loaded.unit in ("byte", "word")
    assert (loaded.vocabulary is None) == (loaded.unit == "byte")
    if loaded.vocabulary is not None:
        assert len(set(loaded.vocabulary)) == loaded.vocabulary_size
    for split in data.SPLITS:
        stream = getattr(loaded, split)
        assert stream.ndim == 1
        assert stream.dtype == (np.uint8 if loaded.unit == "byte" else np.int32)
        assert stream.size > 0
        assert stream.min() >= 0
        assert stream.max() < loaded.vocabulary_size
    assert loaded.train.size > loaded.validation.size
    assert loaded.train.size > loaded.test.size

    again = data.load(name, **options)  # from the prepared copy
    assert again.fingerprint == loaded.fingerprint
    for split in data.SPLITS:
        np.testing.assert_array_equal(getattr(again, split), getattr(loaded, split))
    _check_windows(loaded)
    assert not list(pathlib.Path(options["prepared_dir"]).glob("**/incomplete.*"))


def _check_windows(loaded: data.TokenData) -> None:
    options = {"sequence_length": 7, "batch_size": 3, "seed": 11}
    whole = list(data.training_windows(loaded.train, **options).take(6).as_numpy_iterator())
    resumed = data.training_windows(loaded.train, **options, start_step=4)
    for expected, received in zip(whole[4:], resumed.as_numpy_iterator(), strict=False):
        np.testing.assert_array_equal(expected, received)
    for inputs, targets, weights in data.evaluation_windows(
        loaded.test, sequence_length=7, batch_size=3, max_windows=6
    ).as_numpy_iterator():
        assert inputs.shape == targets.shape == weights.shape == (3, 7)
        assert max(inputs.max(), targets.max()) < loaded.vocabulary_size


def test_every_data_set_has_a_source_here():
    assert set(OPTIONS) == set(data.DATASETS)


@pytest.mark.slow
def test_python_stdlib_joins_whole_files(tmp_path):
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
    documents = python_stdlib.source_documents(folder)
    splits = python_stdlib.split(documents)
    paths = {split: {document.path for document in splits[split]} for split in data.SPLITS}
    assert sum(map(len, paths.values())) == len(set.union(*paths.values())) > 0.9 * len(documents)
    for path in set.union(*paths.values()):
        assert not {"test", "tests", "site-packages", "__pycache__"} & set(path.split("/"))

    loaded = data.load("python_stdlib", prepared_dir=str(tmp_path))
    for split in data.SPLITS:
        expected = b"\n".join((folder / path).read_bytes() for path in sorted(paths[split]))
        assert getattr(loaded, split).tobytes() == expected


def test_text_of_many_files_keeps_files_and_copies_whole(tmp_path):
    contents = _write_files(tmp_path / "files", 200)
    for i in range(0, 200, 4):
        (tmp_path / "files" / f"copy{i}.txt").write_bytes(contents[i])
    loaded = data.load(
        "text", files=str(tmp_path / "files/**/*.txt"), prepared_dir=str(tmp_path / "prepared")
    )
    streams = {split: getattr(loaded, split).tobytes() for split in data.SPLITS}
    for i, content in enumerate(contents):
        copies = 2 if i % 4 == 0 else 1
        assert [stream.count(content) for stream in streams.values() if content in stream] == [
            copies
        ]
    # Files are joined by one newline byte.
    documents = sum(map(len, contents)) + sum(len(contents[i]) for i in range(0, 200, 4))
    assert sum(map(len, streams.values())) == documents + 250 - 3


def test_text_of_few_files_is_cut_contiguously(tmp_path):
    first, second = b"abcdefghij" * 10, bytes(range(200))
    (tmp_path / "a.txt").write_bytes(first)
    (tmp_path / "b.txt").write_bytes(second)
    (tmp_path / "empty.txt").touch()
    globs = [str(tmp_path / "?.txt"), str(tmp_path / "*.txt")]  # a file given twice counts once
    loaded = data.load("text", files=",".join(globs), prepared_dir=str(tmp_path / "prepared"))
    assert loaded.train.tobytes() == first[:90] + b"\n" + second[:180]
    assert loaded.validation.tobytes() == first[90:95] + b"\n" + second[180:190]
    assert loaded.test.tobytes() == first[95:] + b"\n" + second[190:]


def test_text_that_changes_is_prepared_anew(tmp_path):
    file = tmp_path / "notes.txt"
    options = {"files": str(file), "prepared_dir": str(tmp_path / "prepared")}
    file.write_bytes(b"a" * 100)
    before = data.load("text", **options)
    file.write_bytes(b"b" * 100)
    after = data.load("text", **options)
    assert before.fingerprint != after.fingerprint
    assert after.train.tobytes() == b"b" * 90


@pytest.mark.parametrize(
    "by_name", [False, True], ids=["input.txt", "named as TFDS names downloads"]
)
def test_tiny_shakespeare_uses_the_users_file(by_name, tmp_path, monkeypatch):
    options = _shakespeare_options(tmp_path, monkeypatch)
    original = tmp_path / "original/input.txt"
    content = original.read_bytes()
    if by_name:
        ((url, info),) = tfds.builder_cls("tiny_shakespeare").url_infos.items()
        name = tfds.core.download.resource.get_dl_fname(url, info.checksum)
        original.rename(tmp_path / "original" / name)
    loaded = data.load("tiny_shakespeare", **options)
    streams = [getattr(loaded, split).tobytes() for split in data.SPLITS]
    assert b"".join(streams) == content
    # After preparation the original is not needed.
    del options["data_dir"]
    assert data.load("tiny_shakespeare", **options).fingerprint == loaded.fingerprint


def test_tiny_shakespeare_refuses_another_file(tmp_path):
    (tmp_path / "input.txt").write_text("Not the plays.")
    with pytest.raises(ValueError, match="is not the original: it has 14 bytes.*1,115,394"):
        data.load(
            "tiny_shakespeare", data_dir=str(tmp_path), prepared_dir=str(tmp_path / "prepared")
        )
    assert not (tmp_path / "prepared").exists()


def test_tiny_shakespeare_without_network_says_what_to_do(tmp_path, monkeypatch, caplog):
    for variable in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # no server there
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    with (
        caplog.at_level(python_logging.WARNING, logger="absl"),
        pytest.raises(ConnectionError, match="Fetch https://.*--data_dir"),
    ):
        data.load(
            "tiny_shakespeare", data_dir=str(tmp_path), prepared_dir=str(tmp_path / "prepared")
        )
    assert "Downloading tiny_shakespeare" in caplog.text
    assert not list(tmp_path.glob("prepared/tiny_shakespeare/*"))


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="'penn'.*ptb, ptb_characters, python_stdlib, text"):
        data.load("penn")


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("ptb", {"files": "*.txt"}, "takes no --files.*text"),
        ("text", {"data_dir": "."}, "takes no --data_dir.*ptb"),
        ("python_stdlib", {"data_dir": "."}, "takes no --data_dir"),
        ("text", {}, "needs the files to read"),
        ("text", {"files": " , "}, "needs the files to read"),
    ],
)
def test_wrong_options(name, options, match):
    with pytest.raises(ValueError, match=match):
        data.load(name, **options)


@pytest.mark.parametrize("name", ["ptb", "tiny_shakespeare", "wikitext2"])
def test_data_dir_that_is_no_folder(name, tmp_path):
    prepared_dir = str(tmp_path / "prepared")
    with pytest.raises(FileNotFoundError, match="missing.*does not exist.*--data_dir"):
        data.load(name, data_dir=str(tmp_path / "missing"), prepared_dir=prepared_dir)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        data.load(name, data_dir=str(tmp_path / "file"), prepared_dir=prepared_dir)
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize(
    ("files", "error", "match"),
    [
        ("missing/*.txt", FileNotFoundError, r"missing/\*.txt' matches no file"),
        ("folder", ValueError, r"matches folders only.*folder/\*\*/\*.txt"),
        ("empty.txt", ValueError, "files are empty"),
        ("tiny.txt", ValueError, "4 bytes in 1 files, which leaves the validation split empty"),
        ("good.txt,missing.txt", FileNotFoundError, "missing.txt"),
        ("large.txt", ValueError, "Split it into several"),
    ],
)
def test_bad_files(files, error, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "tiny.txt").write_text("four")
    (tmp_path / "good.txt").write_text("good" * 100)
    (tmp_path / "large.txt").write_text("large" * 1000)
    monkeypatch.setattr(text_files, "LARGEST_FILE", 4000)
    with pytest.raises(error, match=match):
        data.load("text", files=files, prepared_dir=str(tmp_path / "prepared"))
    assert not (tmp_path / "prepared").exists()


def test_prepared_dir_that_is_a_file(tmp_path):
    (tmp_path / "notes.txt").write_text("a" * 100)
    with pytest.raises(NotADirectoryError, match="prepared_dir"):
        data.load("text", files=str(tmp_path / "*.txt"), prepared_dir=str(tmp_path / "notes.txt"))


@pytest.mark.parametrize("lost", ["*.tfrecord*", "dataset_info.json"])
def test_damaged_copy_is_named(lost, tmp_path):
    (tmp_path / "notes.txt").write_text("a" * 100)
    options = {"files": str(tmp_path / "*.txt"), "prepared_dir": str(tmp_path / "prepared")}
    data.load("text", **options)
    for path in tmp_path.glob(f"prepared/tfdeq_text/*/*/{lost}"):
        path.unlink()
    with pytest.raises(ValueError, match="prepared copy in .*tfdeq_text.*Delete that folder"):
        data.load("text", **options)


class _Failing(prepared.DocumentsBuilder, skip_registration=True):
    """Calls `before_writing` after preparation has begun."""

    name = "failing"
    before_writing = None

    def split_documents(self, manual_dir):
        type(self).before_writing()
        return super().split_documents(manual_dir)


def _builder(tmp_path, builder_class=prepared.DocumentsBuilder):
    documents = {split: [prepared.Document(split, split.encode())] for split in data.SPLITS}
    return builder_class(config_name="c", prepared_dir=str(tmp_path), documents=lambda: documents)


def test_failed_preparation_leaves_nothing(tmp_path, monkeypatch):
    def fail():
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(_Failing, "before_writing", fail)
    with pytest.raises(RuntimeError, match="disk on fire"):
        prepared.read_texts(lambda: _builder(tmp_path, _Failing))
    assert not [path for path in tmp_path.glob("failing/**/*") if path.is_file()]
    assert not prepared.is_prepared(lambda: _builder(tmp_path, _Failing))


def test_another_process_may_prepare_meanwhile(tmp_path, monkeypatch):
    class Other(prepared.DocumentsBuilder, skip_registration=True):
        """The same data set, as another process sees it."""

        name = "failing"

    def prepare_elsewhere():
        prepared.read_texts(lambda: _builder(tmp_path, Other))

    monkeypatch.setattr(_Failing, "before_writing", prepare_elsewhere)
    texts = prepared.read_texts(lambda: _builder(tmp_path, _Failing))
    assert texts == {split: [split.encode()] for split in data.SPLITS}
    assert not list(tmp_path.glob("**/incomplete.*"))


def test_preparation_is_quiet(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("a" * 100)
    data.load("text", files=str(tmp_path / "*.txt"), prepared_dir=str(tmp_path / "prepared"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "%|" not in captured.err  # a progress bar


def test_order_survives_several_shards(tmp_path, monkeypatch):
    documents = [prepared.Document(f"{i}", b"%d" % i) for i in range(300)]  # 100 a shard
    config = tfds.download.DownloadConfig
    monkeypatch.setattr(
        tfds.download, "DownloadConfig", lambda **options: config(num_shards=3, **options)
    )
    texts = prepared.read_texts(
        lambda: prepared.DocumentsBuilder(
            config_name="c",
            prepared_dir=str(tmp_path),
            documents=lambda: {split: documents for split in data.SPLITS},
        )
    )
    assert texts["train"] == [document.text for document in documents]
    assert len(list(tmp_path.glob("**/*-train.tfrecord*"))) == 3


def test_tiny_shakespeare_uses_an_earlier_download(tmp_path, monkeypatch):
    folder = tmp_path / "prepared/downloads/tiny_shakespeare"
    folder.mkdir(parents=True)
    _pretend_original(folder / "file", monkeypatch)
    ((url, info),) = tfds.builder_cls("tiny_shakespeare").url_infos.items()
    name = tfds.core.download.resource.get_dl_fname(url, info.checksum)
    content = (folder / "file").read_bytes()
    (folder / "file").rename(folder / name)
    loaded = data.load("tiny_shakespeare", prepared_dir=str(tmp_path / "prepared"))
    assert content.startswith(loaded.train.tobytes())
