"""What a function says of its two parts, so that splitting methods can use them one by one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf


class Splitting(NamedTuple):
    """f(z) = P(W z + c), an affine map and then a projection, with I − W strongly monotone.

    A fixed point of f solves 0 ∈ (I − W) z − c + N(z), N the normal cone of the set that P projects on.
    The set is a cone or a box with a normal cone, so that P is the resolvent of αN for every α. (W z)ᵀz <
    ‖z‖² for all z ≠ 0 makes the solution unique.

    A function has it to offer by a method splitting(*args), args as f takes them after z; a cell by
    splitting(x), x as it comes from `inject`.

    Attributes:
        affine: z -> W z + c, both like the state.
        projection: z -> P(z), both like the state.
        resolvent: α -> (v -> (I + α (I − W))^(−1) v), of W alone, the same for all samples: it is made
            once a solve.
        lipschitz: () -> a scalar L >= ‖I − W‖₂ up to a few percent.
        cocoercivity: () -> a scalar β with vᵀ(I − W) v >= β ‖(I − W) v‖² for all v.
    """

    affine: Callable[[Any], Any]
    projection: Callable[[Any], Any]
    resolvent: Callable[[tf.Tensor], Callable[[Any], Any]]
    lipschitz: Callable[[], tf.Tensor]
    cocoercivity: Callable[[], tf.Tensor]


class Prepared(NamedTuple):
    """What a method takes from a splitting once a solve; maps are of [B, D] matrices."""

    step_size: tf.Tensor  # [] α
    projection: Callable[[tf.Tensor], tf.Tensor]
    resolvent: Callable[[tf.Tensor], tf.Tensor] | None = None
