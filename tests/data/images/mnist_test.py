"""mnist and fashion_mnist: small files of the same layout, and through TFDS."""

import gzip
import struct

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds

from tfdeq.data.images import load
from tfdeq.data.images.mnist import CLOTHES, DIGITS

TRAIN, TEST = 30, 8


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def pictures(count, seed):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 28, 28), np.uint8), random.integers(0, 10, count)


def write(folder, train=None, compressed=True):
    for name, (x, y) in {
        "train": pictures(TRAIN, 0) if train is None else train,
        "t10k": pictures(TEST, 1),
    }.items():
        for part, array in (("images-idx3", x), ("labels-idx1", y)):
            content = idx(array)
            name_of = f"{name}-{part}-ubyte"
            if compressed:
                (folder / f"{name_of}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name_of).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("name", "classes", "compressed"),
    [("mnist", DIGITS, True), ("fashion_mnist", CLOTHES, False)],
)
def test_the_original_files(name, classes, compressed, tmp_path):
    data = load(name, data_dir=str(write(tmp_path, compressed=compressed)), validation=6)
    assert data.classes == classes
    assert len(classes) == 10
    train, validation, test = data.examples
    x, y = pictures(TEST, 1)
    np.testing.assert_array_equal(test[0], x[..., None])
    np.testing.assert_array_equal(test[1], y)
    assert test[0].dtype == np.uint8
    assert test[1].dtype == np.int32
    assert len(validation[0]) == 6
    x, y = pictures(TRAIN, 0)
    # Each training picture with its own class, in one of the two.
    known = {picture.tobytes(): label for picture, label in zip(x, y, strict=True)}
    found = [*zip(*train, strict=True), *zip(*validation, strict=True)]
    assert len(found) == TRAIN
    for picture, label in found:
        assert known.pop(picture.tobytes()) == label


def test_copies_are_on_one_side_and_the_order_does_not_matter(tmp_path):
    x, y = pictures(TRAIN, 0)
    order = np.random.default_rng(2).permutation(3 * TRAIN)
    x, y = np.tile(x, (3, 1, 1))[order], np.tile(y, 3)[order]
    (tmp_path / "copies").mkdir()
    (tmp_path / "one").mkdir()
    copies = load("mnist", data_dir=str(write(tmp_path / "copies", (x, y))), validation=10)
    validation, train = (
        {picture.tobytes() for picture in split[0]}
        for split in (copies.examples.validation, copies.examples.train)
    )
    assert not validation & train
    assert len(copies.examples.validation[0]) == 12  # the copies of the tenth are added
    one = load("mnist", data_dir=str(write(tmp_path / "one")), validation=4)
    assert {picture.tobytes() for picture in one.examples.validation[0]} == validation


def test_damaged_files_are_named(tmp_path):
    def failure(name, content):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        write(folder)
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=name.removesuffix(".gz")) as caught:
            load("mnist", data_dir=str(folder), validation=3)
        return str(caught.value)

    x, y = pictures(TRAIN, 0)
    name = "train-images-idx3-ubyte.gz"
    whole = gzip.compress(idx(x))
    assert "cannot be decompressed" in failure(name, whole[:-20])
    assert "holds 23,519 entries" in failure(name, gzip.compress(idx(x)[:-1]))
    assert "does not begin as" in failure(name, b"nonsense")
    assert "does not begin as" in failure(name, gzip.compress(idx(y)))
    assert "29 pictures and" in failure(name, gzip.compress(idx(x[1:])))
    labels = "train-labels-idx1-ubyte.gz"
    assert "labels from 0 to 9" in failure(labels, gzip.compress(idx(y + 10)))


def test_missing_files_and_numbers(tmp_path):
    with pytest.raises(FileNotFoundError, match="No train-images-idx3-ubyte"):
        load("mnist", data_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load("mnist", data_dir=str(tmp_path / "none"))
    for count in (0, TRAIN):
        with pytest.raises(ValueError, match=f"--validation_pictures={count} of 30"):
            load("mnist", data_dir=str(write(tmp_path)), validation=count)


def _prepare(folder):
    """A small data set where TFDS keeps the whole one."""
    original = tfds.builder("mnist", data_dir=folder)

    class Mnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "mnist"
        VERSION = original.version

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(28, 28, 1)),
                        "label": tfds.features.ClassLabel(num_classes=10),
                    }
                ),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(TRAIN, 0),
                "test": self._generate_examples(TEST, 1),
            }

        def _generate_examples(self, count, seed):
            for place, (x, y) in enumerate(zip(*pictures(count, seed), strict=True)):
                yield place, {"image": x[..., None], "label": int(y)}

    Mnist(data_dir=folder).download_and_prepare()


def test_through_tfds(tmp_path):
    _prepare(tmp_path / "prepared")
    found = load("mnist", prepared_dir=str(tmp_path / "prepared"), validation=6)
    (tmp_path / "original").mkdir()
    original = load("mnist", data_dir=str(write(tmp_path / "original")), validation=6)
    for one, other in zip(found.examples, original.examples, strict=True):
        order, other_order = (np.argsort([x.tobytes() for x in split[0]]) for split in (one, other))
        np.testing.assert_array_equal(one[0][order], other[0][other_order])
        np.testing.assert_array_equal(one[1][order], other[1][other_order])
        assert one[1].dtype == np.int32


def test_without_a_network(tmp_path, monkeypatch):
    def refuse(url, timeout):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "head", refuse)
    with pytest.raises(ConnectionError, match=r"Could not download mnist.*no network.*--data_dir"):
        load("mnist", prepared_dir=str(tmp_path))
