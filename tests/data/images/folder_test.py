"""folder: pictures of one's own by class."""

import logging

import numpy as np
import pytest
import tensorflow as tf

from tfdeq.data.images import load


def picture(seed, size=(6, 9), channels=3):
    return np.random.default_rng(seed).integers(0, 256, (*size, channels), np.uint8)


def write(folder, count=40, channels=3):
    """Two classes of PNG and JPEG pictures of several sizes."""
    for label, kind in enumerate(("cat", "dog")):
        (folder / kind / "more").mkdir(parents=True)
        for number in range(count):
            x = picture(2 * number + label, (4 + number % 3, 6), channels)
            where = folder / kind / ("more" if number % 2 else "") / str(number)
            if number % 4:
                tf.io.write_file(f"{where}.png", tf.io.encode_png(x))
            else:
                tf.io.write_file(f"{where}.JPG", tf.io.encode_jpeg(x))
    return folder


def test_pictures_of_one_size_in_three_splits(tmp_path):
    data = load("folder", data_dir=str(write(tmp_path)), image_size=8)
    assert data.classes == ("cat", "dog")
    sizes = [len(pictures) for pictures, _ in data.examples]
    assert sum(sizes) == 80
    assert sizes[0] > 50
    for pictures, classes in data.examples:
        assert pictures.shape[1:] == (8, 8, 3)
        assert pictures.dtype == np.uint8
        assert classes.dtype == np.int32
    assert set(data.examples.train[1]) == {0, 1}


def test_a_picture_that_fits_is_as_it_was(tmp_path):
    write(tmp_path)
    x = picture(900, (8, 8))
    tf.io.write_file(str(tmp_path / "dog" / "fits.png"), tf.io.encode_png(x))
    data = load("folder", data_dir=str(tmp_path), image_size=8)
    found = [
        label
        for pictures, labels in data.examples
        for each, label in zip(pictures, labels, strict=True)
        if np.array_equal(each, x)
    ]
    assert found == [1]


def test_the_split_is_by_content(tmp_path):
    """Names and further pictures move nothing; copies go where their originals are."""
    data = load("folder", data_dir=str(write(tmp_path)), image_size=6).examples
    for path in sorted(tmp_path.rglob("*.png")):
        path.with_name(f"copy_of_{path.name}").write_bytes(path.read_bytes())
        path.rename(path.with_name(f"z{path.name}"))
    again = load("folder", data_dir=str(tmp_path), image_size=6).examples
    for one, other in zip(data, again, strict=True):
        assert {x.tobytes() for x in one[0]} == {x.tobytes() for x in other[0]}
    assert sum(len(x) for x, _ in again) == 80 + 60


def test_grey_pictures_stay_grey_unless_others_have_colours(tmp_path, caplog):
    write(tmp_path, channels=1)
    data = load("folder", data_dir=str(tmp_path), image_size=6)
    assert data.examples.train[0].shape[-1] == 1
    # With an alpha channel, and of another class than an equal one.
    clear = tf.io.encode_png(picture(1000, channels=4))
    for kind in ("cat", "dog"):
        tf.io.write_file(str(tmp_path / kind / "clear.png"), clear)
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    with caplog.at_level(logging.WARNING):
        data = load("folder", data_dir=str(tmp_path), image_size=6)
    assert data.examples.train[0].shape[-1] == 3
    assert "The same picture is of two classes" in caplog.text
    assert "Left out 1 files" in caplog.text


@pytest.mark.parametrize("suffix", ["png", "jpeg"])
@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_a_broken_picture_is_named(suffix, content, tmp_path):
    write(tmp_path, 4)
    if content is None:  # cut off
        encode = tf.io.encode_png if suffix == "png" else tf.io.encode_jpeg
        content = encode(picture(1, (40, 40))).numpy()[:-200]
    (tmp_path / "cat" / f"broken.{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=f"broken.{suffix}' cannot be read"):
        load("folder", data_dir=str(tmp_path))


def test_other_folders_are_refused(tmp_path):
    def failure(**options):
        with pytest.raises(ValueError, match="pictures") as caught:
            load("folder", **options)
        return str(caught.value)

    assert "no --data_dir was given" in failure()
    assert "at least two classes; it holds nothing" in failure(data_dir=str(tmp_path))
    write(tmp_path, 1)
    assert "split empty. Add more pictures" in failure(data_dir=str(tmp_path))
    (tmp_path / "bird").mkdir()
    assert "The class 'bird'" in failure(data_dir=str(tmp_path))
