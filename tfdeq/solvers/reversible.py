"""Reversible relaxation: two coupled states, from which the previous ones can be computed."""

import dataclasses
from typing import ClassVar

import keras
import tensorflow as tf

from tfdeq.solvers.solver import Solver, require_positive


@keras.saving.register_keras_serializable(package="tfdeq")
@dataclasses.dataclass(frozen=True)
class Reversible(Solver):
    """The reversible iteration of RevDEQ, for `ReversibleBackprop`.

    y_{n+1} = (1 − β) y_n + β f(z_n),   z_{n+1} = (1 − β) z_n + β f(y_{n+1}),   y_0 = z_0.
    With w = y_0, z_0, y_1, z_1, … this is a single recursion with one evaluation per step,
    w_{k+1} = (1 − β) w_{k−1} + β f(w_k),
    which can be reversed: w_{k−1} = (w_{k+1} − β f(w_k)) / (1 − β). It converges linearly if f is a
    contraction, more slowly than plain iteration for a small β. The state is the previous iterate.

    Args:
        max_steps: largest number of evaluations of f per sample; one step of both states takes two.
            Default 30.
        tolerance: relative residual at which a sample has converged. Default 1e-3.
        relaxation: β in (0, 1). Default 0.8.

    Raises:
        ValueError: for a setting out of range.

    Source: McCallum, Arora, Foster, Reversible Deep Equilibrium Models, arXiv:2509.12917.

    Example:
        >>> Reversible(max_steps=10).relaxation
        0.8
    """

    computes_squares: ClassVar[bool] = False

    relaxation: float = 0.8

    def __post_init__(self):
        super().__post_init__()
        if self.safeguard is not None:
            raise ValueError(
                "Reversible does not support a safeguard, because discarded iterates cannot be "
                f"recomputed; received safeguard={self.safeguard!r}."
            )
        require_positive("relaxation", self.relaxation)
        if float(self.relaxation) >= 1.0:
            raise ValueError(
                f"relaxation must be less than 1; received {self.relaxation!r}. At 1, earlier iterates "
                "cannot be recomputed; for plain iteration use FixedPointIteration."
            )

    def initial_state(self, z, max_steps=None):
        return z

    def step(self, state, k, z, f_z):
        beta = tf.constant(self.relaxation, z.dtype)
        return z, (1 - beta) * state + beta * f_z
