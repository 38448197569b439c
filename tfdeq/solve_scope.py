"""`SolveScope`: settings for every `DEQLayer` that is called inside, and the results of the solves."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeq.cell_calls import scope_stack
from tfdeq.numerics.limits import Limits
from tfdeq.solution import Solution
from tfdeq.solvers.solver import require_integer


class SolveScope:
    """Sets tolerances, budgets and starts of the solves inside a model, and keeps their results.

    A model's own call takes no tolerance and returns no residual. Inside the scope, every `DEQLayer`
    of the model uses the scope's settings, unless its call sets them, and stores its
    `Solution` in the scope. If scopes are nested, the innermost one applies. Layers inside another layer's
    cell keep their own settings, because they are part of one evaluation.

    The settings apply to calls by this thread and by the replicas of a
    `strategy.run`. Functions compiled by `tf.function` read them at each call, no matter when and where
    they were traced. This includes a model's predict, evaluate, fit and train_on_batch. Settings
    of shape [B], and starts, belong to the B samples of one call of the layer. For predict these are the
    samples of one batch (use batch_size=len(x)), under a strategy those of a replica; a batch of another
    size is an error.

    A compiled function returns only its own results, so `solutions` has no entries for its solves.
    Enter a scope inside the function and return what you need of its solutions, or call the model
    directly. Exported and saved functions keep only scopes that were entered inside them. Compiled
    functions decide on compaction themselves; a compiled call with trace=True keeps its own max_steps
    under XLA.

    Args:
        tolerance: scalar or [B]; relative residual. Values that are not > 0 (including NaN) stand for the
            layer's own. May be a tensor. None: the layers' own.
        max_steps, patience: scalar or [B] integers. Values that are not > 0 stand for the layer's own.
            None: the layers' own.
        starts: name of a solve -> z0 [B, ...] like its state; see `solutions` for the names. Samples
            whose start is not finite start as usual. In a compiled function a start must have the shape of
            the usual start.
        compaction: whether samples that have converged leave the batch (see batched_args of
            `tfdeq.fixed_point`), and settled places leave a layer that solves by blocks. Solves by blocks
            have no gradient. Default True.
        absolute_tolerance: like tolerance; see `tfdeq.fixed_point`.
        explicit_steps: number of applications of the cell instead of a solve. 0: a solve, even in layers
            with their own explicit_steps. A compiled function can only use it from a scope that is entered
            inside the function. None: the layers' own.

    Attributes:
        solutions: name -> `Solution`, in the order of the calls, since the scope was last entered.
            The name is the layer's; for a layer's second call name_1, and so on. Inside a compiled
            function the count starts anew; this matters for `starts`. In the replicas 1, 2, … of a
            strategy it is name_replica_1 and so on instead of name.
        backward_solutions: the same for the backward solves, once a gradient has been computed.

    Raises:
        ValueError: if max_steps or explicit_steps are not integers, or if a compiled function is
            called inside a scope with explicit_steps; when a layer is called, for settings that are
            neither scalars nor [B], or a start unlike the state.
        tf.errors.InvalidArgumentError: for settings or starts whose number of rows differs from the
            batch's.

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
        >>> with SolveScope(max_steps=1):
        ...     rough = model.predict(tf.ones([3, 2]), verbose=0)
        >>> bool(tf.reduce_max(abs(rough - y)) > 0.01)
        True
    """

    def __init__(
        self,
        tolerance: Any = None,
        max_steps: Any = None,
        starts: Mapping[str, Any] | None = None,
        compaction: bool = True,
        patience: Any = None,
        absolute_tolerance: Any = None,
        explicit_steps: int | None = None,
    ):
        for name, value in (("max_steps", max_steps), ("patience", patience)):
            integers = tf.is_tensor(value) or np.issubdtype(np.asarray(value).dtype, np.integer)
            if value is not None and not integers:
                raise ValueError(f"{name} must be of integers; received {value!r}.")
        if explicit_steps is not None:
            require_integer("explicit_steps", explicit_steps, lowest=0)
        self.explicit_steps = explicit_steps
        self.limits = Limits(tolerance, max_steps, patience, absolute_tolerance)
        self.starts = dict(starts or {})
        self.compaction = compaction
        self.solutions: dict[str, Solution] = {}
        self.backward_solutions: dict[str, Solution] = {}

    def __enter__(self) -> "SolveScope":
        entry = scope_stack.Entry(self)
        scope_stack.push(entry)
        self.solutions, self.backward_solutions = entry.solutions, entry.backward_solutions
        return self

    def __exit__(self, *_: Any) -> None:
        scope_stack.pop()
