"""Plain iteration: z ← z + α (f(z) − z)."""

import dataclasses
from typing import ClassVar

import keras
import tensorflow as tf

from tfdeq.solvers.solver import Solver, require_damping


@keras.saving.register_keras_serializable(package="tfdeq")
@dataclasses.dataclass(frozen=True)
class FixedPointIteration(Solver):
    """Damped fixed-point (Picard) iteration.

    z_{k+1} = z_k + α (f(z_k) − z_k). It converges linearly if the damped map is a contraction. It keeps
    no state, so its memory does not depend on max_steps.

    Args:
        max_steps: largest number of evaluations of f per sample. Default 30.
        tolerance: relative residual at which a sample has converged. Default 1e-3.
        damping: α in (0, 1]. Default 1.

    Raises:
        ValueError: for a setting out of range.

    Source: Banach's fixed-point theorem; Kelley, Iterative Methods for Linear and Nonlinear
        Equations, 1995, section 4.2.

    Example:
        >>> FixedPointIteration(max_steps=10).max_steps
        10
    """

    memoryless: ClassVar[bool] = True
    computes_squares: ClassVar[bool] = False

    damping: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        require_damping(self.damping)

    def initial_state(self, z, max_steps=None):
        return ()

    def step(self, state, k, z, f_z):
        if self.damping == 1.0:
            return state, f_z
        return state, z + tf.constant(self.damping, z.dtype) * (f_z - z)
