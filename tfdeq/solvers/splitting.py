"""The two parts of a function, which splitting methods use separately."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf


class Splitting(NamedTuple):
    """f(z) = P(W z + c), an affine map and then a projection, with I − W strongly monotone.

    A fixed point of f solves 0 ∈ (I − W) z − c + N(z), where N is the normal cone of the set that P
    projects on. The set is convex, such as a cone or a box, so P is the resolvent of αN for every α >
    0. The solution is unique because (W z)ᵀz < ‖z‖² for all z ≠ 0.

    A function provides its splitting by a method splitting(*args), whose args are those of f after z; a
    cell by splitting(x), with x from `inject`.

    Attributes:
        affine: z -> W z + c, both like the state.
        projection: z -> P(z), both like the state.
        resolvent: α -> (v -> (I + α (I − W))^(−1) v). It depends only on W and is the same for all
            samples, so it is computed once per solve.
        lipschitz: () -> a scalar L >= ‖I − W‖₂, at most a few percent too large.
        cocoercivity: () -> a scalar β with vᵀ(I − W) v >= β ‖(I − W) v‖² for all v.
    """

    affine: Callable[[Any], Any]
    projection: Callable[[Any], Any]
    resolvent: Callable[[tf.Tensor], Callable[[Any], Any]]
    lipschitz: Callable[[], tf.Tensor]
    cocoercivity: Callable[[], tf.Tensor]


class Prepared(NamedTuple):
    """What a method computes from a splitting once per solve; its maps act on [B, D] matrices."""

    step_size: tf.Tensor  # scalar α
    projection: Callable[[tf.Tensor], tf.Tensor]
    resolvent: Callable[[tf.Tensor], tf.Tensor] | None = None
