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

    z_{k+1} = P(z_k − α ((I − W) z_k − c)). If β ‖(I − W) v‖² <= vᵀ(I − W) v and m ‖v‖² <= vᵀ(I − W) v
    for all v, each step multiplies the distance of two states by at most √(1 − m (2α − α²/β)), so the
    method converges from every start for 0 < α < 2β. It is not the damped iteration of f, because the
    step is taken in the argument of the projection. It only needs W z + c, which f computes in any
    case, so one step costs one evaluation.

    The cell provides the parts of f (`tfdeq.solvers.splitting.Splitting`), as `tfdeq.cells.MonotoneDense`
    and the other monotone cells do. The step belongs to the solver, not to the cell, so that the residual is
    that of f itself for every step size and any solver can solve the cell. For a function without a
    splitting, P = I, and the step is z + α (f(z) − z).

    The linear system of the backward solve is solved by GMRES with the same tolerance and budget, unless
    the adjoint has its own solver. GMRES needs fewer products than the same splitting of the adjoint
    system.

    Args:
        max_steps: largest number of evaluations of f per sample. Default 200.
        tolerance: relative residual at which a sample has converged. Default 1e-3.
        step_size: α > 0. None: β, from the cell; 1 for a function without a splitting. Default None.

    Raises:
        ValueError: for a setting out of range, or a safeguard, which this method does not need.

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
    """Raises a ValueError for settings that splitting methods do not take.

    solver: a solver with a step_size.
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
