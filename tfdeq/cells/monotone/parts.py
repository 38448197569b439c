"""A monotone cell in float64, with its operators as matrices, for certificates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf


class ExactParts(NamedTuple):
    """f(z) = relu(z W + x U + b) for the inputs x of a batch, with the weights rounded as in the cell.

    I − W is monotone in the inner product Σ Λ_i v_i w_i, so z √Λ is the state in ordinary coordinates;
    Λ = 1 unless the cell has another metric. The operators are given in coordinates in which they are
    block diagonal: one block for a matrix, one per frequency for a circular convolution. All tensors
    are float64. A state may be a nest of tensors.
    """

    affine: Callable[[Any], Any]  # z -> z W + x U + b, [B, …]
    recurrent: Callable[[Any], Any]  # z -> z W Λ
    operator: tf.Tensor  # [n, d, d] blocks of I − W
    injection: tf.Tensor  # [n, c, d] blocks of U
    # Rows that multiply states, [R, …] -> their coordinates [n, R, d]: those of v / √Λ.
    transform: Callable[[Any], tf.Tensor]
    weights: tf.Tensor  # [n], ‖v‖² is the sum of the squared coordinates with these weights
