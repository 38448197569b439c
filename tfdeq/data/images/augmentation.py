"""`Augmentation`: random shifts and mirror images of training pictures."""

import dataclasses
from typing import Any

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Changes training pictures at random: each of a batch on its own, by the seed alone.

    For the argument `augment` of `tfdeq.data.training_examples`.

    Attributes:
        shift: each picture is moved by up to this many places down or up and across; zeros come in. Default
            0.
        mirror: whether each picture is mirrored, left to right, with probability 1/2. Default False.

    Example:
        >>> pictures, classes = tf.zeros([3, 8, 8, 1], tf.uint8), tf.zeros([3], tf.int32)
        >>> Augmentation(shift=2, mirror=True)(pictures, classes, tf.constant([0, 1]))[0].shape
        TensorShape([3, 8, 8, 1])
    """

    shift: int = 0
    mirror: bool = False

    def __call__(self, pictures: tf.Tensor, classes: Any, seed: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """Returns pictures [B, H, W, C] and classes; seed: [2] int32."""
        rows, columns = pictures.shape[1:3]
        batch = tf.shape(pictures)[0]
        # Not drawn at all where it changes nothing: the other draws do not depend on it.
        if self.mirror:
            drawn = tf.random.stateless_uniform([batch], tf.random.fold_in(seed, 0)) < 0.5
            mirrored = tf.reverse(pictures, [2])
            pictures = tf.where(drawn[:, None, None, None], mirrored, pictures)
        if self.shift:
            reach = [self.shift, self.shift]
            padded = tf.pad(pictures, [[0, 0], reach, reach, [0, 0]])
            offsets = tf.random.stateless_uniform(
                [2, batch], tf.random.fold_in(seed, 1), 0, 2 * self.shift + 1, tf.int32
            )
            down = offsets[0][:, None] + tf.range(rows)
            across = offsets[1][:, None] + tf.range(columns)
            pictures = tf.gather(padded, down, axis=1, batch_dims=1)
            # Of each picture its own columns: [B, W, H, C] and back.
            turned = tf.transpose(pictures, [0, 2, 1, 3])
            pictures = tf.transpose(tf.gather(turned, across, axis=1, batch_dims=1), [0, 2, 1, 3])
        return pictures, classes
