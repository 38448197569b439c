"""The settings of the scopes around one call of a `DEQLayer`."""

import collections
import functools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeq.cell_calls import scope_stack
from tfdeq.cell_calls.call_time import call_time_value, can_ask, current_graph, function_graph
from tfdeq.rows import choose, with_rows
from tfdeq.solution import Solution
from tfdeq.solve_scope import SolveScope
from tfdeq.solvers.solver import require_integer

# Number of calls of each name in the graph of a function.
_CALLS: weakref.WeakKeyDictionary[Any, collections.Counter[str]] = weakref.WeakKeyDictionary()


class ScopedCall:
    """One call of a layer, named, and the settings of the scopes around it.

    The settings are known in eager mode, and in a function if the innermost scope was entered inside
    that function. Any other function reads them at each of its calls.

    Args:
        name: the layer's name.
    """

    def __init__(self, name: str):
        self._entry, self._graph = scope_stack.innermost(), current_graph()
        self.known = _is_known(self._entry, self._graph)
        calls = collections.Counter()
        if not self.known:
            calls = _CALLS.setdefault(function_graph(self._graph), calls)
        elif self._entry is not None:
            calls = self._entry.calls
        replica = _replica()
        base = f"{name}_replica_{replica}" if replica else name
        number = calls[base]
        calls[base] += 1
        self.name = f"{base}_{number}" if number else base

    @property
    def compaction(self) -> bool:
        """Whether samples that are done may leave the batch."""
        scope = self._scope()
        return scope is None or scope.compaction

    def explicit_steps(self, given: int | None, own: int) -> int:
        """Returns the number of applications: the call's, else the scope's, else the layer's; 0: a solve."""
        if given is not None:
            require_integer("explicit_steps", given, lowest=0)
            return given
        scope = self._scope()
        return own if scope is None or scope.explicit_steps is None else scope.explicit_steps

    def limit(
        self, name: str, given: Any, own: Any, usual: Any, batch: tf.Tensor, dtype: tf.DType
    ) -> Any:
        """Returns a setting of this call: the call's own, else the scope's, else the layer's.

        Args:
            name: name of a field of `Limits`.
            given: the value that the call sets, or None.
            own: the layer's value for this call; None: the solver's.
            usual: scalar; the solver's value.
            batch: [1] int32, the batch size. dtype: dtype of the setting.
        """
        if given is not None:
            return given
        value = _ask(
            ("tfdeq.SolveScope", name, dtype),
            lambda scope: _as_limit(name, getattr(scope.limits, name), dtype),
            tf.TensorSpec(None, dtype),
            lambda: _nothing(dtype, ()),
        )
        if value is None:
            return own
        if value.shape.rank is None:
            # A scalar or [B]; a reshape, because XLA checks it too.
            value = tf.broadcast_to(
                tf.reshape(value, batch[: tf.minimum(tf.rank(value), 1)]), batch
            )
        return own_unless_positive(value, usual if own is None else own)

    def start(self, z0: Any, usual: Any, checked: Callable[[Any], Any]) -> Any:
        """Returns the start of this call: the call's own, else the scope's, else the usual one.

        Args:
            z0: the start that the call sets, or None.
            usual: the layer's start for the input, a nest [B, ...].
            checked: returns a start as a state; raises ValueError unless it is like the usual one.
        """
        if z0 is not None:
            return with_rows_of(usual, checked(z0))
        if self.known:
            scope = self._scope()
            z0 = None if scope is None else scope.starts.get(self.name)
            if z0 is None:
                return usual
            z0 = with_rows_of(usual, checked(z0))
            return _where_finite(z0, usual) if _alike(z0, usual) else z0
        given, finite = [], tf.constant(True)
        for index, leaf in enumerate(tf.nest.flatten(usual)):
            start, is_finite = self._start_of_call(index, leaf, checked)
            given.append(start)
            finite &= is_finite
        return choose(finite, tf.nest.pack_sequence_as(usual, given), usual)

    def _start_of_call(
        self, index: int, leaf: tf.Tensor, checked: Callable[[Any], Any]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns one leaf of the start that the scope sets at each call of the function.

        With it [B] bool, whether it is finite; False for samples without a start.
        """
        shape, dtype = tf.TensorShape([None, *leaf.shape[1:]]), leaf.dtype

        def of_scope(scope):
            start = scope.starts.get(self.name)
            return None if start is None else tf.nest.flatten(checked(start))[index]

        nothing = (0, *(0 if size is None else size for size in shape[1:]))
        given = _ask(
            ("tfdeq.SolveScope", "start", self.name, index, tuple(shape), dtype),
            of_scope,
            tf.TensorSpec(shape, dtype),
            lambda: _nothing(dtype, nothing),
        )
        size, none = tf.shape(leaf), tf.equal(tf.shape(given)[0], 0)
        given = tf.reshape(given, tf.where(none, tf.shape(given), size))  # XLA checks it too
        missing = size - tf.shape(given)
        # Of the start as it was given: where there is none, XLA would compute this when it compiles,
        # entry by entry of the whole state.
        finite = tf.pad(_is_finite(given), [[0, missing[0]]])
        given = tf.pad(given, tf.stack([tf.zeros_like(missing), missing], 1))
        given.set_shape(leaf.shape)
        finite.set_shape(leaf.shape[:1])
        return given, finite

    def record(self, solution: Solution) -> None:
        """Stores the result of the solve in the scope, if the scope can return it."""
        if self._records():
            self._entry.solutions[self.name] = solution

    def backward_recorder(self) -> Callable[[Solution], None] | None:
        """Returns a function that stores the backward solve's result; None without a scope for it."""
        if not self._records():
            return None
        entry, name = self._entry, self.name

        def keep(solution: Solution) -> None:
            if entry.is_of(current_graph()):
                entry.backward_solutions[name] = solution

        return keep

    def _scope(self) -> SolveScope | None:
        return self._entry.scope if self.known and self._entry is not None else None

    def _records(self) -> bool:
        return self._scope() is not None and self._entry.is_of(self._graph)


def own_unless_positive(value: Any, own: Any) -> tf.Tensor:
    """Returns the values that are > 0, and `own` in place of the others (NaN among them)."""
    value = tf.convert_to_tensor(value)
    return tf.where(value > 0, value, tf.cast(own, value.dtype))


def with_rows_of(usual: Any, z0: Any) -> Any:
    """Returns the start; raises an error unless it has a row for each sample of the usual one."""
    first = tf.nest.flatten(usual)[0]
    if not tf.is_tensor(first):
        return z0  # a spec, because the input does not determine the size of the state
    batch = tf.shape(first)[:1]
    z0 = with_rows("z0", z0, batch[0], shared=False)

    def fixed(leaf):  # not a broadcast: XLA too checks the number of rows
        reshaped = tf.reshape(leaf, tf.concat([batch, tf.shape(leaf)[1:]], 0))
        reshaped.set_shape(leaf.shape)
        return reshaped

    return tf.nest.map_structure(fixed, z0)


def _is_known(entry: scope_stack.Entry | None, graph: tf.Graph | None) -> bool:
    """Whether the settings are known now, rather than at each call of a function."""
    return not can_ask(graph) or (entry is not None and entry.is_of_function(graph))


def _ask(
    key: Any,
    of_scope: Callable[[SolveScope], tf.Tensor | None],
    spec: tf.TensorSpec,
    default: Callable[[], tf.Tensor],
) -> tf.Tensor | None:
    """Returns a setting of the active scope, or None; in a function, that of each later call."""
    entry, graph = scope_stack.innermost(), current_graph()
    if _is_known(entry, graph):
        return None if entry is None or entry.scope is None else of_scope(entry.scope)

    def at_call():
        _refuse_explicit_steps(scope_stack.innermost())
        value = _ask(key, of_scope, spec, default)
        return default() if value is None else value

    return call_time_value(key, at_call, spec, default)


def _refuse_explicit_steps(entry: scope_stack.Entry | None) -> None:
    """Raises an error for a setting that an already compiled function cannot follow."""
    scope = None if entry is None else entry.scope
    if scope is not None and scope.explicit_steps is not None:
        raise ValueError(
            "A compiled function (tf.function, a model's predict, evaluate or fit) cannot use "
            f"explicit_steps of a SolveScope around its call; received {scope.explicit_steps}. Enter "
            "the scope inside the function, or call the model directly."
        )


def _as_limit(name: str, value: Any, dtype: tf.DType) -> tf.Tensor | None:
    if value is None:
        return None
    # Not tf.cast of a Python number, which goes through float32, where 1e-60 is 0.
    value = tf.cast(value, dtype) if tf.is_tensor(value) else tf.constant(np.asarray(value), dtype)
    if value.shape.rank not in (0, 1, None):
        raise ValueError(
            f"{name} must be a scalar or of shape [B], one for each sample; received shape {value.shape}."
        )
    return value


@functools.cache
def _nothing(dtype: tf.DType, shape: tuple[int, ...]) -> tf.Tensor:
    """Returns the value for no setting: zero, which means the layer's own, or a start without rows."""
    # The same tensor each time, because a saved function keeps it as a constant.
    with tf.init_scope(), tf.device("CPU:0"):
        return tf.zeros(shape, dtype)


def _replica() -> int:
    context = tf.distribute.get_replica_context()
    if context is None:
        return 0
    return int(tf.get_static_value(context.replica_id_in_sync_group) or 0)


def _alike(one: Any, other: Any) -> bool:
    return all(
        one.shape.is_compatible_with(other.shape)
        for one, other in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True)
    )


def _where_finite(given: Any, usual: Any) -> Any:
    """Returns the given start for samples where all of it is finite, else the usual start."""
    finite = tf.constant(True)
    for leaf in tf.nest.flatten(given):
        finite &= _is_finite(leaf)
    return choose(finite, given, usual)


def _is_finite(leaf: tf.Tensor) -> tf.Tensor:
    """Returns [B] bool, whether all numbers of a sample are finite."""
    return tf.reduce_all(tf.math.is_finite(leaf), axis=range(1, leaf.shape.rank))
