"""Functions with a splitting, for tests of splitting methods."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeq.cells.monotone import operators
from tfdeq.solvers.splitting import Splitting


class SplitFunction:
    """f(z, w, x) = P(z w + x), with arrays w [d, d] and x [B, d].

    Args:
        affine: (z, w, x) -> z w + x, or a replacement. projection: P.
    """

    def __init__(self, affine: Callable[..., Any], projection: Callable[[Any], Any]):
        self.affine, self.projection = affine, projection

    def __call__(self, z, *args):
        return self.projection(self.affine(z, *args))

    def splitting(self, w, x):
        operator = (tf.eye(w.shape[0], dtype=w.dtype) - w)[None]

        def resolvent(step_size):
            inverse = operators.resolvent_matrices(operator, step_size)[0]
            return lambda v: tf.matmul(v, inverse)

        return Splitting(
            affine=lambda z: self.affine(z, w, x),
            projection=self.projection,
            resolvent=resolvent,
            lipschitz=lambda: operators.lipschitz(operator),
            cocoercivity=lambda: operators.cocoercivity(operator),
        )


def monotone_case(
    batch: int = 4, size: int = 6, monotonicity: float = 0.3, symmetric: bool = False, seed: int = 0
):
    """Returns f(z) = P(z w + x), where P projects to the box [0, 1], args (w, x) and the fixed point.

    The fixed point is constructed: z has entries at both ends and inside, and x is chosen to fit. All
    arrays are float64.
    """
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(2, size, size))
    skew = 0 if symmetric else b - b.T
    w = (1 - monotonicity) * np.eye(size) - a @ a.T + skew
    exact = np.clip(random.normal(0.5, 1, size=(batch, size)), 0, 1)
    # At the ends, the argument of P may be outside the box.
    beyond = np.where(exact == 0, -1, np.where(exact == 1, 1, 0)) * random.random((batch, size))
    x = exact + beyond - exact @ w
    f = SplitFunction(lambda z, w, x: tf.matmul(z, w) + x, lambda z: tf.clip_by_value(z, 0.0, 1.0))
    return f, (tf.constant(w), tf.constant(x)), exact
