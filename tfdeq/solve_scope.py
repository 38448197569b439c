"""`SolveScope`: settings for every `DEQLayer` that is called inside, and what the solves returned."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from tfdeq.solution import Solution

_ACTIVE = threading.local()


class SolveScope:
    """Reaches the solves inside a model: sets their tolerances, budgets and starts, keeps their results.

    A model's own call takes no tolerance and returns no residual; inside the scope every `DEQLayer`
    that it calls takes the scope's settings, where the call names none of its own, and leaves its
    `Solution` here. Layers inside another layer's cell keep their own settings: they are part of one
    evaluation.

    Args:
        tolerance: scalar or [B]; relative residual. Not > 0 (NaN too): the layer's own. May be a
            tensor. None: the layers' own.
        max_steps: scalar or [B] integers. Not > 0: the layer's own. None: the layers' own.
        starts: name of a solve -> z0 like its state; see `solutions` for the names.
        compaction: whether samples that are done leave the batch (see `tfdeq.fixed_point`'s
            batched_args). Default True.

    Attributes:
        solutions: name -> `Solution`, in the order of the calls. The name is the layer's; for a layer's
            second call in the scope name_1, and so on.
        backward_solutions: the same of the backward solves, once a gradient has been taken.

    Example:
        >>> import keras, tfdeq
        >>> inputs = keras.Input((2,))
        >>> z = keras.Input((2,))
        >>> cell = keras.Model([z, inputs], keras.ops.tanh(inputs - 0.5 * z))
        >>> model = keras.Model(inputs, tfdeq.DEQLayer(cell, name="depth")(inputs))
        >>> with SolveScope(tolerance=1e-6) as scope:
        ...     y = model(tf.ones([3, 2]))
        >>> bool(tf.reduce_all(scope.solutions["depth"].residual <= 1e-6))
        True
    """

    def __init__(
        self,
        tolerance: Any = None,
        max_steps: Any = None,
        starts: Mapping[str, Any] | None = None,
        compaction: bool = True,
    ):
        self._tolerance, self._max_steps = tolerance, max_steps
        self._starts = dict(starts or {})
        self.compaction = compaction
        self.solutions: dict[str, Solution] = {}
        self.backward_solutions: dict[str, Solution] = {}

    def __enter__(self) -> "SolveScope":
        _stack().append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        _stack().pop()

    def settings(
        self, layer: Any, tolerance: Any, max_steps: Any, z0: Any, usual: Any
    ) -> tuple[Any, Any, Any]:
        """Returns a layer's tolerance, max_steps and z0: its call's own, else the scope's.

        Args:
            layer: the `DEQLayer` that is about to solve.
            tolerance, max_steps, z0: what its call named, or None.
            usual: its usual start; samples whose given start is not finite take that.
        """
        if tolerance is None and self._tolerance is not None:
            tolerance = tf.convert_to_tensor(self._tolerance)
            if not tolerance.dtype.is_floating:
                tolerance = tf.cast(tolerance, tf.float32)
            tolerance = own_unless_positive(tolerance, layer.solver.tolerance)
        if max_steps is None and self._max_steps is not None:
            max_steps = own_unless_positive(self._max_steps, layer.solver.max_steps)
        given = self._starts.get(self._name(layer))
        if z0 is None and given is not None:
            z0 = _where_finite(given, usual) if _fits(given, usual) else given
        return tolerance, max_steps, z0

    def record(self, layer: Any, solution: Solution) -> None:
        """Keeps what a layer's solve returned."""
        self.solutions[self._name(layer)] = solution

    def backward_recorder(self, layer: Any) -> Callable[[Solution], None]:
        """Returns what keeps the backward solve's result of a layer that is about to solve."""
        name = self._name(layer)
        return lambda solution: self.backward_solutions.update({name: solution})

    def _name(self, layer: Any) -> str:
        name, number = layer.name, 0
        while name in self.solutions:
            number += 1
            name = f"{layer.name}_{number}"
        return name


def current() -> SolveScope | None:
    """Returns the innermost scope, or None."""
    stack = _stack()
    return stack[-1] if stack else None


@contextlib.contextmanager
def suspended() -> Iterator[None]:
    """Hides all scopes from the evaluations of a cell, whose results a loop cannot hand out."""
    _stack().append(None)
    try:
        yield
    finally:
        _stack().pop()


def own_unless_positive(value: Any, own: float | int) -> tf.Tensor:
    """Returns the values that are > 0, and `own` in place of the others (NaN among them)."""
    value = tf.convert_to_tensor(value)
    return tf.where(value > 0, value, tf.cast(own, value.dtype))


def _stack() -> list[SolveScope | None]:
    if not hasattr(_ACTIVE, "stack"):
        _ACTIVE.stack = []
    return _ACTIVE.stack


def _fits(given: Any, usual: Any) -> bool:
    """Whether a start is like the usual one; the layer refuses others in its own words."""
    received, expected = tf.nest.flatten(given), tf.nest.flatten(usual)
    return len(received) == len(expected) and all(
        tf.TensorShape(one.shape).is_compatible_with(other.shape)
        for one, other in zip(received, expected, strict=True)
    )


def _where_finite(given: Any, usual: Any) -> Any:
    """The given start where all of a sample's is finite, else the usual one."""
    given = tf.nest.map_structure(tf.convert_to_tensor, given)
    finite = None
    for leaf in tf.nest.flatten(given):
        here = tf.reduce_all(tf.math.is_finite(leaf), axis=range(1, leaf.shape.rank))
        finite = here if finite is None else finite & here

    def choose(given, usual):
        row = tf.reshape(finite, [-1] + [1] * (given.shape.rank - 1))
        return tf.where(row, tf.cast(given, usual.dtype), usual)

    return tf.nest.map_structure(choose, given, usual)
