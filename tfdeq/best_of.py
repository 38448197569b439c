"""`best_of`: several solves from random starts, and of each sample the answer to trust most."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdeq.layer import DEQLayer
from tfdeq.rows import rows_of
from tfdeq.solution import Status, combined
from tfdeq.solve_scope import SolveScope
from tfdeq.solvers.solver import require_positive_integer

# Two states are one answer where they differ by at most this share of their norm.
_SAME_STATE = 0.01


class BestOf(NamedTuple):
    """The best of the answers of every sample."""

    outputs: Any  # what the layer or model returns, of the chosen start, [B, …]
    residual: tf.Tensor  # [B] float32, of the chosen start
    agreement: tf.Tensor  # [B] float32, share of the sample's starts whose answer is the chosen one
    steps: tf.Tensor  # [B] int32, evaluations of the cell, over all of the sample's starts
    status: tf.Tensor  # [B] int32, `Status` of the chosen start
    start: tf.Tensor  # [B] int32, which start was chosen; 0: the usual one

    @property
    def converged(self) -> tf.Tensor:
        """[B] bool, whether the chosen start's solve met the tolerance."""
        return tf.equal(self.status, int(Status.CONVERGED))


def best_of(
    layer: keras.layers.Layer,
    x: Any,
    starts: int = 8,
    max_steps: Any = None,
    tolerance: Any = None,
    *,
    noise: float = 1.0,
    seed: int = 0,
    same: Callable[[Any, Any], tf.Tensor] | None = None,
) -> BestOf:
    """Solves from several starts at once, and returns of each sample the answer to trust most.

    Start 0 is the usual one, the others are normal noise, the same for all samples, so that a sample's
    answer does not depend on its batch. Among the starts whose solve met the tolerance (among all, where
    none did) the answer is chosen that most starts agree on, of equals the one of smallest residual.

    An equilibrium that does not depend on its start (path independence) makes the starts agree; where
    they do not, agreement and residual say how far to trust the answer.

    Args:
        layer: a `DEQLayer`, or a model that calls one or several. A model is called without training.
        x: its input, a nest of tensors [B, ...].
        starts: S >= 1, solves of each sample. They are solved as one batch of S · B. Default 8.
        max_steps: evaluations of each solve at most, scalar or [B]. Default None: the layers' own.
        tolerance: relative residual, scalar or [B]. Default None: the layers' own.
        noise: standard deviation of the starts' noise, >= 0. Default 1.
        seed: of the noise. Default 0.
        same: (outputs, outputs) -> [B] bool, whether two answers are one. Default: of a model whether the
            largest of the last axis is at the same place everywhere; of a `DEQLayer`, and of outputs with
            one number at the last axis, whether they differ by at most 1 % of their norm.

    Returns:
        `BestOf`. No gradient passes through it.

    Raises:
        ValueError: for settings out of range, or a model that calls no `DEQLayer`.

    Source: Anil et al., Path Independent Equilibrium Models, arXiv:2211.09961, section 4.

    Example:
        >>> import keras, tfdeq
        >>> z, x = keras.Input((1,)), keras.Input((1,))
        >>> cell = keras.Model([z, x], keras.ops.tanh(3.0 * z + x))  # two equilibria, one either side of 0
        >>> layer = tfdeq.DEQLayer(cell, solver="fixed_point_iteration")
        >>> best = best_of(layer, tf.constant([[0.01], [5.0]]), starts=16)
        >>> (best.agreement < 1.0).numpy().tolist()
        [True, False]
    """
    require_positive_integer("starts", starts)
    if not float(noise) >= 0:
        raise ValueError(f"noise must be >= 0; received {noise!r}.")
    given = {"tolerance": tolerance, "max_steps": max_steps}
    count = rows_of(tf.nest.flatten(x)[0])
    own = {
        name: _tiled(value, starts) if _is_vector(value) else value for name, value in given.items()
    }
    z0 = _starts(layer, x, starts, count, noise, seed)
    with SolveScope(starts=z0, **own) as scope:
        outputs = layer(tf.nest.map_structure(lambda leaf: _tiled(leaf, starts), x), training=False)
    solution = combined(scope.solutions.values())
    outputs = tf.nest.map_structure(tf.stop_gradient, outputs)
    by_start = tf.nest.map_structure(lambda leaf: _split(leaf, starts), outputs)
    if same is None:
        same = _same_states if isinstance(layer, DEQLayer) else _same_classes
    residual, steps, status = (
        _split(part, starts) for part in (solution.residual, solution.steps, solution.status)
    )
    agreement = _agreement(by_start, starts, same)
    settled = tf.cast(tf.equal(status, int(Status.CONVERGED)), tf.float32)
    chosen = _chosen(settled, agreement, residual)

    def take(leaf):
        return tf.gather(leaf, chosen, axis=1, batch_dims=1)

    # [S, B, …] -> [B, S, …] for the choice.
    best = tf.nest.map_structure(
        lambda leaf: take(tf.experimental.numpy.moveaxis(leaf, 0, 1)), by_start
    )
    residual, status, agreement = (
        take(tf.transpose(part)) for part in (residual, status, agreement)
    )
    return BestOf(best, residual, agreement, tf.reduce_sum(steps, axis=0), status, chosen)


def _starts(layer, x, starts, count, noise, seed):
    """Name of a solve -> [S · B, …]: the usual start, which is asked for by NaN, and noise."""
    with SolveScope(max_steps=1) as scope:  # to see what states there are
        layer(x, training=False)
    if not scope.solutions:
        raise ValueError(
            f"best_of needs a DEQLayer, or a model that calls one; received {layer!r}."
        )
    found = {}
    for place, (name, solution) in enumerate(scope.solutions.items()):
        leaves = []
        for number, leaf in enumerate(tf.nest.flatten(solution.z)):
            shape = tf.concat([[starts], tf.shape(leaf)[1:]], axis=0)
            drawn = tf.random.stateless_normal(
                shape, [seed, 1000 * place + number], dtype=leaf.dtype, alg="philox"
            )
            usual = tf.equal(tf.range(starts), 0)
            usual = tf.reshape(usual, [starts, *[1] * (leaf.shape.rank - 1)])
            drawn = tf.where(usual, tf.constant(float("nan"), leaf.dtype), noise * drawn)
            drawn = tf.repeat(drawn, count, axis=0)
            leaves.append(tf.ensure_shape(drawn, [None, *leaf.shape[1:]]))
        found[name] = tf.nest.pack_sequence_as(solution.z, leaves)
    return found


def _tiled(leaf, starts):
    """[B, …] -> [S · B, …]."""
    leaf = tf.convert_to_tensor(leaf)
    return tf.tile(leaf, [starts, *[1] * (leaf.shape.rank - 1)])


def _split(leaf, starts):
    """[S · B, …] -> [S, B, …]."""
    shape = tf.shape(leaf)
    split = tf.reshape(leaf, tf.concat([[starts, shape[0] // starts], shape[1:]], axis=0))
    return tf.ensure_shape(split, [starts, None, *leaf.shape[1:]])


def _is_vector(value):
    return value is not None and tf.convert_to_tensor(value).shape.rank == 1


def _agreement(by_start, starts, same):
    """[S, B] float32: of each start's answer the share of starts that have it."""

    def of(number, others):
        own = tf.nest.map_structure(lambda leaf: leaf[number], others)
        found = [
            same(own, tf.nest.map_structure(lambda leaf, other=other: leaf[other], others))
            for other in range(starts)
        ]
        return tf.reduce_mean(tf.cast(tf.stack(found), tf.float32), axis=0)

    return tf.stack([of(number, by_start) for number in range(starts)])


def _chosen(settled, agreement, residual):
    """[B] int32: settled ones first, then those with most agreement, then the smallest residual."""
    residual = tf.where(tf.math.is_finite(residual), residual, residual.dtype.max)
    best = tf.equal(settled, tf.reduce_max(settled, axis=0))
    most = tf.where(best, agreement, -1.0)
    best &= tf.equal(most, tf.reduce_max(most, axis=0))
    return tf.argmin(tf.where(best, residual, float("inf")), axis=0, output_type=tf.int32)


def _same_classes(a, b):
    """[B] bool."""
    found = []
    for one, other in zip(tf.nest.flatten(a), tf.nest.flatten(b), strict=True):
        if one.shape.rank < 2 or one.shape[-1] == 1:
            found.append(_same_states(one, other))
            continue
        equal = tf.equal(tf.argmax(one, axis=-1), tf.argmax(other, axis=-1))
        found.append(tf.reduce_all(equal, axis=range(1, equal.shape.rank)))
    return tf.reduce_all(tf.stack(found), axis=0)


def _same_states(a, b):
    """[B] bool."""

    def square(leaves):
        return sum(tf.reduce_sum(leaf**2, axis=range(1, leaf.shape.rank)) for leaf in leaves)

    first, second = (
        [tf.cast(leaf, tf.float32) for leaf in tf.nest.flatten(nest)] for nest in (a, b)
    )
    apart = square([one - other for one, other in zip(first, second, strict=True)])
    return apart <= _SAME_STATE**2 * tf.maximum(square(first), square(second))
