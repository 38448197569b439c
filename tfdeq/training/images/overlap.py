"""The measure of segmentations."""

from typing import Any

import tensorflow as tf


def intersection_over_union(targets: Any, logits: Any) -> tf.Tensor:
    """Returns the mean over the classes that a picture or its answer has, [B] float32.

    Args:
        targets: [B, H, W] int32. logits: [B, H, W, classes].
    """
    classes = logits.shape[-1]
    answer = tf.one_hot(tf.argmax(logits, axis=-1), classes)
    target = tf.one_hot(tf.cast(targets, tf.int32), classes)
    both = tf.reduce_sum(answer * target, axis=(1, 2))
    either = tf.reduce_sum(tf.maximum(answer, target), axis=(1, 2))
    there = tf.cast(either > 0, tf.float32)
    return tf.reduce_sum(tf.math.divide_no_nan(both, either), axis=1) / tf.reduce_sum(there, axis=1)
