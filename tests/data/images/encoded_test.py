"""Files as pictures: the same eagerly and in a graph, and broken ones among others."""

import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf

from tfdeq.data.images import encoded


def picture(size, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, channels), np.uint8)


def png(x):
    return tf.io.encode_png(x).numpy()


def jpeg(x):
    return tf.io.encode_jpeg(x).numpy()


def huge_png(rows, columns):
    """A small file of a large, black picture."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    content = zlib.compress(bytes((columns + 1) * rows))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def read(files, shape):
    return tf.function(encoded.read_batch, autograph=False)(tf.constant(files, tf.string), shape)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_graph_reads_as_the_loader_of_training_data(channels):
    shape = (6, 5, channels)
    files = [
        png(picture((6, 5), channels)),
        png(picture((6, 5), 4 - channels)),
        png(picture((12, 17))),
        png(picture((3, 4), 2)),
        png(picture((3, 4), 4)),
        jpeg(picture((13, 8))),
        jpeg(picture((4, 4), 1)),
    ]
    found, readable = read(files, shape)
    assert readable.numpy().all()
    for each, content in zip(found, files, strict=True):
        expected = encoded.resized(encoded.decoded(content), shape)
        np.testing.assert_array_equal(np.round(255 * each), expected)
        # In a graph TensorFlow multiplies by 1 / 255 instead of dividing.
        np.testing.assert_allclose(each, encoded.scaled(expected), atol=1e-7)


def test_what_fits_stays_as_it_is():
    x = picture((6, 5))
    found, _ = read([png(x)], (6, 5, 3))
    np.testing.assert_array_equal(np.round(255 * found[0]), x)
    grey = picture((6, 5), 1)
    found, _ = read([png(grey)], (6, 5, 3))
    np.testing.assert_array_equal(np.round(255 * found[0]), np.repeat(grey, 3, axis=-1))
    # Colours that are all grey have nearly the same luma: its weights add up to 0.9999.
    found, _ = read([png(np.repeat(grey, 3, axis=-1))], (6, 5, 1))
    np.testing.assert_allclose(255 * found[0], grey, atol=1)


def test_transparency_is_left_out():
    x = picture((4, 4), 4)
    np.testing.assert_array_equal(encoded.decoded(png(x)), x[..., :3])
    np.testing.assert_array_equal(encoded.decoded(png(x[..., :2])), x[..., :1])


@pytest.mark.parametrize("good", [True, False])
def test_broken_files_do_not_affect_others(good):
    one, other = png(picture((8, 8), seed=1)), jpeg(picture((8, 8), seed=2))
    broken = [
        b"",
        b"no picture",
        one[: len(one) // 2],
        one[:12],
        other[: len(other) - 40],
        one[:40] + b"\0" * 20 + one[60:],
        tf.io.encode_jpeg(picture((8, 8))).numpy()[:100],
    ]
    files = [one, *broken, other] if good else broken
    found, readable = read(files, (8, 8, 3))
    expected = [good, *[False] * len(broken), good] if good else [False] * len(broken)
    assert readable.numpy().tolist() == expected
    assert not found.numpy()[~readable].any()
    if good:
        np.testing.assert_array_equal(found[:1], read([one], (8, 8, 3))[0])
        np.testing.assert_array_equal(found[-1:], read([other], (8, 8, 3))[0])


def test_no_files():
    found, readable = read(np.zeros([0], object), (8, 8, 3))
    assert found.shape == (0, 8, 8, 3)
    assert readable.shape == (0,)


def test_a_file_of_too_many_pixels_is_not_decoded(monkeypatch):
    monkeypatch.setattr(encoded, "MOST_PIXELS", 300)
    files = [huge_png(10, 30), huge_png(10, 31), jpeg(picture((10, 30))), jpeg(picture((31, 10)))]
    _, readable = read(files, (4, 4, 3))
    assert readable.numpy().tolist() == [True, False, True, False]


def test_what_is_no_picture_is_an_error_for_the_loader():
    with pytest.raises(tf.errors.InvalidArgumentError):
        encoded.decoded(b"no picture")
