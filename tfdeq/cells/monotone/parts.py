"""A monotone cell in float64, as a certificate wants it: its operators as matrices."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf


class ExactParts(NamedTuple):
    """f(z) = relu(z W + x U + b) for the inputs x of a batch, with the weights as the cell rounds them.

    In coordinates in which the operators are block diagonal: those of the state itself for a matrix, the
    frequencies for a circular convolution. All float64.
    """

    affine: Callable[[tf.Tensor], tf.Tensor]  # z -> z W + x U + b, [B, …]
    recurrent: Callable[[tf.Tensor], tf.Tensor]  # z -> z W
    operator: tf.Tensor  # [n, d, d] the blocks of I − W
    injection: tf.Tensor  # [n, c, d] the blocks of U
    transform: Callable[[tf.Tensor], tf.Tensor]  # states [R, …] -> their coordinates [n, R, d]
    weights: tf.Tensor  # [n] so that ‖z‖² is the weighted sum of squares of the coordinates
