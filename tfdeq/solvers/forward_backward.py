"""Forward-backward splitting: a gradient-like step, then a projection."""

import dataclasses
from typing import ClassVar

import keras
import tensorflow as tf

from tfdeq.solvers.gmres import GMRES
from tfdeq.solvers.solver import Solver, require_positive
from tfdeq.solvers.splitting import Prepared


@keras.saving.register_keras_serializable(package="tfdeq")
@dataclasses.dataclass(frozen=True)
class ForwardBackward(Solver):
    """Forward-backward splitting, for f(z) = P(W z + c) with I − W strongly monotone.

    z_{k+1} = P(z_k − α ((I − W) z_k − c)). With β ‖(I − W) v‖² <= vᵀ(I − W) v and m ‖v‖² <=
    vᵀ(I − W) v for all v, a step shortens every difference by the factor √(1 − m (2α − α²/β)) at
    least, so that it converges from every start for 0 < α < 2β. That is not the damped iteration of
    f: the step goes to the projection's argument, and W z + c is all that it takes, which f computes
    in any case. So one step costs one evaluation.

    The cell says what its parts are (`tfdeq.solvers.splitting.Splitting`; `tfdeq.cells.MonotoneDense`
    and `MonotoneConvolution` do). The method is of the solver, not of the cell, for the residual to be
    that of f itself whatever the step, and for one cell to be solved by any solver. A function that does
    not say it is one without a projection, P = I: then the step is z + α (f(z) − z).

    The linear system of the backward solve is left to GMRES with the same tolerance and budget, unless
    the adjoint has a solver of its own: it needs fewer products than the same splitting of the adjoint
    system.

    Args:
        max_steps: evaluations of f at most, per sample. Default 200.
        tolerance: relative residual at which a sample is done. Default 1e-3.
        step_size: α > 0. None: β, from the cell; 1 for a function that says nothing. Default None.

    Raises:
        ValueError: for a setting out of range, or a safeguard: there is nothing to guard.

    Source: Ryu and Boyd, A Primer on Monotone Operator Methods, Appl. Comput. Math. 15(1), 2016, section
        6; for equilibrium networks: Winston, Kolter, arXiv:2006.08591, section 3.3.

    Example:
        >>> ForwardBackward(step_size=0.5).step_size
        0.5
    """

    memoryless: ClassVar[bool] = True
    computes_squares: ClassVar[bool] = False
    uses_splitting: ClassVar[bool] = True

    max_steps: int = 200
    step_size: float | None = None

    def __post_init__(self):
        super().__post_init__()
        check_settings(self)

    def initial_state(self, z, max_steps=None):
        return ()

    def step(self, state, k, z, f_z):
        if self.step_size is None:
            return state, f_z
        return state, z + tf.constant(self.step_size, z.dtype) * (f_z - z)

    def prepare(self, splitting, dtype):
        step_size = self.step_size
        if step_size is None:
            step_size = splitting.cocoercivity()
        return Prepared(tf.cast(step_size, dtype), splitting.projection)

    def step_with_splitting(self, state, k, z, affine_z, prepared):
        return state, prepared.projection(z + prepared.step_size * (affine_z - z))

    def for_linear_systems(self):
        return linear_solver(self)


def check_settings(solver: Solver) -> None:
    """Raises a ValueError for settings that no splitting method takes.

    solver: with a step_size.
    """
    name = type(solver).__name__
    if solver.step_size is not None:
        require_positive("step_size", solver.step_size)
    if solver.safeguard is not None:
        raise ValueError(
            f"{name} takes no safeguard: of a strongly monotone operator its steps come nearer to the "
            f"solution each time. Received safeguard={solver.safeguard!r}; lower step_size instead."
        )


def linear_solver(solver: Solver) -> GMRES:
    """Returns GMRES with the tolerance, budget and patience of another solver."""
    return GMRES(
        max_steps=solver.max_steps,
        tolerance=solver.tolerance,
        patience=solver.patience,
        absolute_tolerance=solver.absolute_tolerance,
    )
