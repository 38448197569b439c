"""Intersection over union, by hand."""

import numpy as np
import tensorflow as tf

from tfdeq.training.images.overlap import intersection_over_union


def test_by_hand():
    targets = tf.constant([[[0, 0], [1, 1]], [[0, 0], [0, 0]], [[2, 2], [2, 2]]])
    answers = tf.constant([[[0, 1], [1, 1]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]])
    found = intersection_over_union(targets, tf.one_hot(answers, 4))
    # Class 0: one of two places; class 1: two of three. Then all right, and all wrong.
    np.testing.assert_allclose(found, [(1 / 2 + 2 / 3) / 2, 1.0, 0.0], rtol=1e-6)
