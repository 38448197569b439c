"""`best_of`: solves from several random starts and returns the most reliable answer of each sample."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdeq.layer import DEQLayer
from tfdeq.rows import rows_of
from tfdeq.solution import Status, combined
from tfdeq.solve_scope import SolveScope
from tfdeq.solvers.solver import require_positive_integer

# Two states count as the same answer if they differ by at most this share of their norm.
_SAME_STATE = 0.01


class BestOf(NamedTuple):
    """The best answer of each sample; see `best_of`.

    Example:
        >>> import keras, tfdeq
        >>> z, x = keras.Input((1,)), keras.Input((1,))
        >>> layer = tfdeq.DEQLayer(keras.Model([z, x], keras.ops.tanh(0.5 * z + x)))
        >>> best = tfdeq.best_of(layer, tf.ones([2, 1]), starts=3)
        >>> best.converged.numpy().tolist(), best.agreement.numpy().tolist()
        ([True, True], [1.0, 1.0])
    """

    outputs: Any  # what the layer or model returns for the chosen start, [B, …]
    residual: tf.Tensor  # [B] float32, of the chosen start
    agreement: tf.Tensor  # [B] float32, share of the sample's starts that reach the chosen answer
    steps: tf.Tensor  # [B] int32, evaluations of the cell, over all of the sample's starts
    status: tf.Tensor  # [B] int32, `Status` of the chosen start
    start: tf.Tensor  # [B] int32, the chosen start; 0: the usual one

    @property
    def converged(self) -> tf.Tensor:
        """[B] bool, whether the chosen start's solve met the tolerance."""
        return tf.equal(self.status, int(Status.CONVERGED))


def best_of(
    layer: keras.layers.Layer,
    x: Any,
    starts: Any = 8,
    max_steps: Any = None,
    tolerance: Any = None,
    *,
    noise: float = 1.0,
    seed: int = 0,
    same: Callable[[Any, Any], tf.Tensor] | None = None,
) -> BestOf:
    """Solves from several starts at once and returns the most reliable answer of each sample.

    Start 0 is the usual one. The others are normal noise. The noise is the same for all samples, so
    a sample's answer does not depend on its batch. Of the starts whose solve met the tolerance (or
    of all, if none did), the answer that most starts agree on is chosen. A tie is decided by the
    smallest residual.

    If an equilibrium does not depend on its start (path independence), the starts agree. If they do not
    agree, agreement and residual say how reliable the answer is.

    Args:
        layer: a `DEQLayer`, or a model that calls one or several. A model is called without training.
        x: its input, a nest of tensors [B, ...].
        starts: number of solves for each sample, >= 1: one number, or [B] integers, which may be a
            tensor; values below 1 count as 1. They are solved as one batch of S · B rows, where S
            is the largest number. With [B] numbers, the starts that a sample does not need cost one
            evaluation each. Default 8.
        max_steps: largest number of evaluations in each solve, scalar or [B]. Default None: the
            layers' own.
        tolerance: relative residual, scalar or [B]. Default None: the layers' own.
        noise: standard deviation of the starts' noise, >= 0. Default 1.
        seed: seed of the noise. Default 0.
        same: (outputs, outputs) -> [N] bool, whether two answers are the same. Default for a model:
            whether the largest value along the last axis has the same index at every place. Default
            for a `DEQLayer`, and for outputs whose last axis has size 1: whether they differ by at
            most 1 % of their norm.

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
    if not float(noise) >= 0:
        raise ValueError(f"noise must be >= 0; received {noise!r}.")
    wanted, most = _wanted(starts, rows_of(tf.nest.flatten(x)[0]))
    given = {"tolerance": tolerance, "max_steps": max_steps}
    own = {
        name: _tiled(value, most) if _is_vector(value) else value for name, value in given.items()
    }
    if wanted is not None:
        own["max_steps"] = _one_step_where_unwanted(wanted, own["max_steps"])
    with SolveScope(starts=_starts(layer, x, most, noise, seed), **own) as scope:
        outputs = layer(tf.nest.map_structure(lambda leaf: _tiled(leaf, most), x), training=False)
    outputs = tf.nest.map_structure(tf.stop_gradient, outputs)
    if same is None:
        same = _same_states if isinstance(layer, DEQLayer) else _same_classes
    return _best(outputs, combined(scope.solutions.values()), wanted, most, same)


def _wanted(starts: Any, count: tf.Tensor) -> tuple[tf.Tensor | None, Any]:
    """Returns [S, B] bool, which starts each sample wants (None: all), and S."""
    if not _is_vector(starts):
        require_positive_integer("starts", starts)
        return None, starts
    starts = tf.maximum(tf.cast(starts, tf.int32), 1)
    most = tf.reduce_max(tf.concat([starts, [1]], axis=0))
    starts = tf.broadcast_to(starts, [count])
    return tf.range(most)[:, None] < starts[None, :], most


def _one_step_where_unwanted(wanted: tf.Tensor, max_steps: Any) -> tf.Tensor:
    """Returns max_steps as [S · B] int32, with 1 for unwanted starts; 0 stands for the layers' own."""
    usual = 0 if max_steps is None else tf.cast(max_steps, tf.int32)
    return tf.where(tf.reshape(wanted, [-1]), usual, 1)


def _best(outputs: Any, solution: Any, wanted: Any, starts: Any, same: Any) -> BestOf:
    """Chooses from the outputs and the solution of S · B solves."""
    residual, steps, status = (
        _split(part, starts) for part in (solution.residual, solution.steps, solution.status)
    )
    counts = tf.ones_like(residual) if wanted is None else tf.cast(wanted, tf.float32)
    agreement = _agreement(outputs, counts, starts, same)
    settled = tf.cast(tf.equal(status, int(Status.CONVERGED)), tf.float32)
    chosen = _chosen(tf.where(counts > 0, settled, -1.0), agreement, residual)

    def take(leaf):
        """[S, B, …] -> [B, …]."""
        places = tf.stack([chosen, tf.range(tf.shape(chosen)[0])], axis=1)
        return tf.gather_nd(leaf, places)

    return BestOf(
        tf.nest.map_structure(lambda leaf: take(_split(leaf, starts)), outputs),
        take(residual),
        take(agreement),
        tf.reduce_sum(tf.where(counts > 0, steps, 0), axis=0),
        take(status),
        chosen,
    )


def _starts(layer: Any, x: Any, starts: Any, noise: float, seed: int) -> dict[str, Any]:
    """Returns name of a solve -> [S · B, …]: NaN, which stands for the usual start, and then noise."""
    with SolveScope(max_steps=1) as scope:  # to learn the names and shapes of the states
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
            usual = tf.reshape(usual, [-1, *[1] * (leaf.shape.rank - 1)])
            drawn = tf.where(usual, tf.constant(float("nan"), leaf.dtype), noise * drawn)
            drawn = tf.repeat(drawn, tf.shape(leaf)[0], axis=0)
            leaves.append(tf.ensure_shape(drawn, [None, *leaf.shape[1:]]))
        found[name] = tf.nest.pack_sequence_as(solution.z, leaves)
    return found


def _tiled(leaf: Any, starts: Any) -> tf.Tensor:
    """[B, …] -> [S · B, …]."""
    leaf = tf.convert_to_tensor(leaf)
    tiled = tf.tile(leaf, tf.concat([[starts], tf.ones([leaf.shape.rank - 1], tf.int32)], axis=0))
    return tf.ensure_shape(tiled, [None, *leaf.shape[1:]])


def _split(leaf: tf.Tensor, starts: Any) -> tf.Tensor:
    """[S · B, …] -> [S, B, …]."""
    shape = tf.shape(leaf)
    split = tf.reshape(leaf, tf.concat([[starts, shape[0] // starts], shape[1:]], axis=0))
    return tf.ensure_shape(split, [None, None, *leaf.shape[1:]])


def _is_vector(value: Any) -> bool:
    return value is not None and tf.convert_to_tensor(value).shape.rank == 1


def _agreement(outputs: Any, counts: tf.Tensor, starts: Any, same: Any) -> tf.Tensor:
    """[S, B] float32: the share of the sample's wanted starts that have the same answer as each start."""
    by_start = tf.nest.map_structure(lambda leaf: _split(leaf, starts), outputs)

    def of(number):
        own = tf.nest.map_structure(lambda leaf: _tiled(leaf[number], starts), by_start)
        return tf.reduce_sum(
            counts * tf.cast(_split(same(own, outputs), starts), tf.float32), axis=0
        )

    agree = tf.map_fn(of, tf.range(starts), fn_output_signature=tf.float32)
    return agree / tf.reduce_sum(counts, axis=0)


def _chosen(settled: tf.Tensor, agreement: tf.Tensor, residual: tf.Tensor) -> tf.Tensor:
    """[B] int32: prefers converged starts, then the most agreement, then the smallest residual."""
    residual = tf.where(tf.math.is_finite(residual), residual, residual.dtype.max)
    best = tf.equal(settled, tf.reduce_max(settled, axis=0))
    most = tf.where(best, agreement, -1.0)
    best &= tf.equal(most, tf.reduce_max(most, axis=0))
    return tf.argmin(tf.where(best, residual, float("inf")), axis=0, output_type=tf.int32)


def _same_classes(a: Any, b: Any) -> tf.Tensor:
    """[N] bool."""
    found = []
    for one, other in zip(tf.nest.flatten(a), tf.nest.flatten(b), strict=True):
        if one.shape.rank < 2 or one.shape[-1] == 1:
            found.append(_same_states(one, other))
            continue
        equal = tf.equal(tf.argmax(one, axis=-1), tf.argmax(other, axis=-1))
        found.append(tf.reduce_all(equal, axis=range(1, equal.shape.rank)))
    return tf.reduce_all(tf.stack(found), axis=0)


def _same_states(a: Any, b: Any) -> tf.Tensor:
    """[N] bool."""

    def square(leaves):
        return sum(tf.reduce_sum(leaf**2, axis=range(1, leaf.shape.rank)) for leaf in leaves)

    first, second = (
        [tf.cast(leaf, tf.float32) for leaf in tf.nest.flatten(nest)] for nest in (a, b)
    )
    apart = square([one - other for one, other in zip(first, second, strict=True)])
    return apart <= _SAME_STATE**2 * tf.maximum(square(first), square(second))
