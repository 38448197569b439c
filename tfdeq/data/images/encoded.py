"""PNG and JPEG files as pictures of one size: for training data, and in the graph of a served model.

Both use the same operations, so that a model is served what it was trained on.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

# Largest picture, rows times columns, that `read_batch` decodes: a small file can hold a very large one.
MOST_PIXELS = 2**24
_PNG = b"\x89PNG\r\n\x1a\n"
# Where a PNG file has its width and height, as big-endian numbers of four bytes.
_PNG_SIZE = (16, 8)


def decoded(content: Any) -> tf.Tensor:
    """Returns the picture in a file's content (bytes), [H, W, 1 or 3] uint8, without transparency.

    Raises:
        tf.errors.InvalidArgumentError: if it cannot be read.
    """
    picture = tf.io.decode_image(content, expand_animations=False)
    picture.set_shape([None, None, None])
    channels = tf.shape(picture)[-1]
    # The last channel of two or four is transparency.
    return picture[..., : channels - (1 - channels % 2)]


def resized(picture: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
    """Returns a picture [H, W, 1 or 3] uint8 in a shape (rows, columns, 1 or 3).

    It is scaled without regard to its proportions. A grey picture is repeated for three colours; of a
    picture in colour, the luma is its grey.
    """
    rows, columns, channels = shape
    if picture.shape[:2] != (rows, columns):
        scaled_picture = tf.image.resize(picture, (rows, columns), antialias=True)
        picture = tf.cast(tf.clip_by_value(tf.round(scaled_picture), 0, 255), tf.uint8)
    given = tf.shape(picture)[-1]
    if channels == 3:
        picture = tf.tile(picture, [1, 1, 3 // given])
    else:
        picture = tf.cond(given == 3, lambda: _grey(picture), lambda: picture)
    return tf.ensure_shape(picture, shape)


def scaled(pictures: Any) -> tf.Tensor:
    """Returns bytes as a model of pictures takes them: float32 in [0, 1]."""
    return tf.cast(pictures, tf.float32) / 255


def read_batch(contents: tf.Tensor, shape: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Reads the contents of files, in a graph; a broken one does not affect the others.

    Args:
        contents: [B] string; PNG or JPEG files of at most MOST_PIXELS.
        shape: (rows, columns, 1 or 3) of the result.

    Returns:
        pictures [B, rows, columns, channels] float32 in [0, 1], 0 where the file cannot be read; and [B]
        bool, which could be read.
    """
    rows = tf.shape(contents, tf.int64)[0]

    def read(place: tf.Tensor, content: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.control_dependencies([_check_size(content)]):
            return place, resized(decoded(content), shape)

    # A decoder's error would end the call; a data set can leave out the elements that fail.
    found = tf.data.Dataset.from_tensor_slices((tf.range(rows), contents)).map(read).ignore_errors()
    # One more, so that there is a batch even if nothing can be read.
    last = tf.data.Dataset.from_tensors((rows, tf.zeros(shape, tf.uint8)))
    places, pictures = found.concatenate(last).batch(rows + 1).get_single_element()
    places = places[:, None]
    all_rows = tf.concat([rows[None] + 1, tf.constant(shape, tf.int64)], axis=0)
    pictures = tf.scatter_nd(places, scaled(pictures), all_rows)[:-1]
    readable = tf.scatter_nd(places, tf.ones_like(places[:, 0], tf.int32), rows[None] + 1)[:-1] > 0
    return tf.ensure_shape(pictures, [None, *shape]), readable


def _check_size(content: tf.Tensor) -> tf.Operation:
    """Returns a check that the file is PNG or JPEG, and not too large, before it is decoded."""

    def of_png():
        size = tf.cast(tf.io.decode_raw(tf.strings.substr(content, *_PNG_SIZE), tf.uint8), tf.int64)
        return tf.reduce_sum(tf.reshape(size, [2, 4]) * [2**24, 2**16, 2**8, 1], axis=1)

    def of_jpeg():  # an error for other files
        return tf.cast(tf.image.extract_jpeg_shape(content)[:2], tf.int64)

    is_png = tf.equal(tf.strings.substr(content, 0, len(_PNG)), _PNG)
    size = tf.cond(is_png, of_png, of_jpeg)
    return tf.debugging.Assert(tf.reduce_prod(size) <= MOST_PIXELS, [size])


def _grey(picture: tf.Tensor) -> tf.Tensor:
    return tf.image.rgb_to_grayscale(tf.ensure_shape(picture, [None, None, 3]))
