"""The limits of one call of a `DEQLayer`: those of the call, else of a scope, else of the layer."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfdeq.cell_calls.scoped_call import ScopedCall
from tfdeq.numerics.fixed_shapes import shapes_are_fixed
from tfdeq.numerics.limits import Limits
from tfdeq.solvers.solver import Solver, require_positive_integer


def call_limits(
    scoped: ScopedCall, solver: Solver, z0: Any, given: Limits, own: Any, trace: bool
) -> Limits:
    """Returns the limits of a call's solve.

    Args:
        scoped: the call. solver: the layer's solver. z0: the start, a nest of [B, ...].
        given: the limits that the call sets.
        own: max_steps of the layer, if neither call nor scope sets it: an integer or a scalar int32;
            None: the solver's.
        trace: whether the solve keeps a trace.
    """
    first = tf.nest.flatten(z0)[0]
    batch = tf.shape(first)[:1]
    never = tf.int32.max if solver.patience is None else solver.patience
    steps = given.max_steps
    # XLA must know the largest length of a trace.
    if trace and shapes_are_fixed() and not scoped.known:
        steps = own if steps is None else steps
    else:
        steps = scoped.limit("max_steps", steps, own, solver.max_steps, batch, tf.int32)
    others = {
        name: scoped.limit(name, getattr(given, name), None, usual, batch, dtype)
        for name, usual, dtype in (
            ("tolerance", solver.tolerance, first.dtype),
            ("patience", never, tf.int32),
            ("absolute_tolerance", solver.absolute_tolerance, first.dtype),
        )
    }
    return Limits(max_steps=steps, **others)


def checked_training_steps(budget: Any, most: int) -> int | tuple[int, int] | None:
    """Returns the training_max_steps of `DEQLayer` as None, a number or a pair, after checking it.

    Args:
        budget: the given value. most: the solver's max_steps.

    Raises:
        ValueError: for other values, or values above the solver's max_steps.
    """
    if budget is None:
        return None
    numbers = tuple(budget) if isinstance(budget, list | tuple) else (budget,)
    for number in numbers:
        require_positive_integer("training_max_steps", number)
    if len(numbers) > 2 or list(numbers) != sorted(numbers) or numbers[-1] > most:
        raise ValueError(
            "training_max_steps must be a number or a pair (lowest, highest), at most the solver's "
            f"max_steps {most}; received {budget!r}."
        )
    return numbers if len(numbers) == 2 else numbers[0]


def drawn_training_steps(
    budget: int | tuple[int, int] | None, next_seed: Callable[[], tf.Tensor]
) -> int | tf.Tensor | None:
    """Returns the budget of one call in training; for a pair, a random number between the two.

    Args:
        budget: from `checked_training_steps`. next_seed: () -> a seed, [2] integers.
    """
    if not isinstance(budget, tuple):
        return budget
    lowest, highest = budget
    seed = tf.cast(next_seed(), tf.int64)
    return tf.random.stateless_uniform((), seed, lowest, highest + 1, tf.int32)
