"""The result of a solve: the state, its distance from a fixed point, and why the solver stopped."""

import enum
from collections.abc import Iterable
from typing import Any, NamedTuple

import keras
import tensorflow as tf


class Status(enum.IntEnum):
    """Why the solver stopped working on one sample."""

    CONVERGED = 0
    MAX_STEPS = 1
    STAGNATED = 2
    NON_FINITE = 3


_TEXTS = {
    Status.CONVERGED: "converged: the relative residual is at most the tolerance.",
    Status.MAX_STEPS: (
        "max_steps: the budget ended before the tolerance was met. Cause: too few steps for this "
        "tolerance, or a cell that contracts slowly or not at all. Raise max_steps or the tolerance; "
        "if more steps do not lower the residual, train with jacobian_penalty, lower the solver's "
        "damping, or use the Anderson or Broyden solver instead of plain iteration."
    ),
    Status.STAGNATED: (
        "stagnated: the residual does not fall any more. Cause: it stands at the precision of the "
        "dtype, the iterates repeat themselves, or the solver's patience ended. Raise the tolerance or "
        "compute in a wider dtype if the residual is near the dtype's precision. If the iterates "
        "repeat, lower the damping, use the Anderson or Broyden solver, or train with "
        "jacobian_penalty. Otherwise raise patience, or leave it at None."
    ),
    Status.NON_FINITE: (
        "non_finite: the input has NaN or Inf, or the cell returned them; the best finite iterate was "
        "kept. Cause: NaN or Inf in the input or the weights, or an iteration that diverges. Check the "
        "input; if it is finite, lower the damping or the learning rate, or train with "
        "jacobian_penalty."
    ),
}


def describe(status: int | Status) -> str:
    """Returns the cause of a status and what to change, as one paragraph.

    Args:
        status: a `Status`, or its integer value (a Python, NumPy or TensorFlow integer scalar).

    Raises:
        ValueError: if the number is not a status.

    Example:
        >>> describe(Status.CONVERGED)
        'converged: the relative residual is at most the tolerance.'
    """
    try:
        return _TEXTS[Status(int(status))]
    except ValueError:
        known = ", ".join(f"{member.value} ({member.name})" for member in Status)
        raise ValueError(f"status must be one of {known}; received {status!r}.") from None


class Solution(NamedTuple):
    """The result of a fixed-point solve. Shapes have the batch size B in front.

    Attributes:
        z: the best iterate of each sample, in the structure, shapes and dtypes of z0.
        residual: [B] float32, ‖f(z) − z‖₂ / (‖f(z)‖₂ + ε) of that iterate, over the whole structure.
            The largest float32 if f was not finite at the initial state.
        steps: [B] int32, evaluations of f spent on that sample.
        status: [B] int32, values of `Status`.
        iterates: list of nests like z, the states after the requested numbers of evaluations; () if none
            were requested.
        trace: [B, max_steps] float32, the relative residual of each iterate, in the column of its
            evaluation, counted from 0; NaN where there was no evaluation. () if it was not requested.
    """

    z: Any
    residual: tf.Tensor
    steps: tf.Tensor
    status: tf.Tensor
    iterates: Any = ()
    trace: Any = ()

    @property
    def converged(self) -> tf.Tensor:
        """[B] bool: whether the tolerance was met."""
        # In a functional model the comparison is also an operation of the model.
        equal = keras.ops.equal if isinstance(self.status, keras.KerasTensor) else tf.equal
        return equal(self.status, int(Status.CONVERGED))


def combined(solutions: Iterable[Solution]) -> Solution | None:
    """Returns one solution for several solves of a batch: largest residual, sum of steps, worst status.

    Its z is that of the first solve. Returns None if there are no solutions.
    """
    found: Solution | None = None
    for solution in solutions:
        if found is None:
            found = solution
            continue
        found = found._replace(
            residual=tf.maximum(found.residual, solution.residual),
            steps=found.steps + solution.steps,
            status=tf.maximum(found.status, solution.status),
        )
    return found
