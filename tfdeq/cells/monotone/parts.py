"""A monotone cell in float64, as a certificate wants it: its operators as matrices."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf


class ExactParts(NamedTuple):
    """f(z) = relu(z W + x U + b) for the inputs x of a batch, with the weights as the cell rounds them.

    Monotone for the inner product Σ Λ_i v_i w_i, so that z √Λ is the state in ordinary coordinates; Λ = 1
    unless the cell has another metric. The operators are given in coordinates in which they are also
    block diagonal: one block for a matrix, one a frequency for a circular convolution. All float64.
    """

    affine: Callable[[tf.Tensor], tf.Tensor]  # z -> z W + x U + b, [B, …]
    recurrent: Callable[[tf.Tensor], tf.Tensor]  # z -> z W Λ
    operator: tf.Tensor  # [n, d, d] the blocks of I − W
    injection: tf.Tensor  # [n, c, d] the blocks of U
    # Rows that multiply states, [R, …] -> their coordinates [n, R, d]: those of v / √Λ.
    transform: Callable[[tf.Tensor], tf.Tensor]
    weights: tf.Tensor  # [n] so that ‖v‖² is the weighted sum of squares of the coordinates
