"""Peaceman-Rachford splitting: reflections by the resolvent of the linear part and by the projection."""

import dataclasses
from typing import ClassVar

import keras
import tensorflow as tf

from tfdeq.solvers.forward_backward import check_settings, linear_solver
from tfdeq.solvers.solver import Solver
from tfdeq.solvers.splitting import Prepared


@keras.saving.register_keras_serializable(package="tfdeq")
@dataclasses.dataclass(frozen=True)
class PeacemanRachford(Solver):
    """Peaceman-Rachford splitting, for f(z) = P(W z + c) with I − W strongly monotone.

    With V = (I + α (I − W))^(−1), which the cell makes once a solve, and z_k = P(u_k),
    u_{k+1} = u_k + 2 V (z_k − u_k + α (W z_k + c − z_k)).
    That is the reflection by the resolvent of the affine part after that by the projection, written as a
    correction: W z + c is what f computes in any case, and an error in V slows the method, but does
    not move the solution. From the start, u_1 = z_0 + α (W z_0 + c − z_0), so that a start at the
    equilibrium stays there. It converges from every start for every α > 0; a step shortens differences
    of u by √((L − m) / (L + m)) at least for α = 1/L, where m is that of (I − W) and L its norm:
    about √(L/m) times fewer steps than a method that only evaluates W. A step costs one
    evaluation and one product with V, which is not counted in `steps`.

    Only for functions that say what their parts are: see `tfdeq.solvers.splitting.Splitting`. The backward
    solve is as for `ForwardBackward`.

    Args:
        max_steps: evaluations of f at most, per sample. Default 100.
        tolerance: relative residual at which a sample is done. Default 1e-3.
        step_size: α > 0. None: 1/L, from the cell. Default None.

    Raises:
        ValueError: for a setting out of range, or a safeguard; in a solve, for a function without a
            splitting.

    Source: Peaceman and Rachford, J. Soc. Indust. Appl. Math. 3(1), 1955; Ryu and Boyd, A Primer on
        Monotone Operator Methods, Appl. Comput. Math. 15(1), 2016, section 7; for equilibrium
        networks: Winston, Kolter, arXiv:2006.08591, section 3.3.

    Example:
        >>> PeacemanRachford(max_steps=30).max_steps
        30
    """

    computes_squares: ClassVar[bool] = False
    uses_splitting: ClassVar[bool] = True
    needs_splitting: ClassVar[bool] = True

    max_steps: int = 100
    step_size: float | None = None

    def __post_init__(self):
        super().__post_init__()
        check_settings(self)

    def initial_state(self, z, max_steps=None):
        return z

    def prepare(self, splitting, dtype):
        step_size = self.step_size
        if step_size is None:
            step_size = 1 / splitting.lipschitz()
        step_size = tf.cast(step_size, dtype)
        return Prepared(step_size, splitting.projection, splitting.resolvent(step_size))

    def step_with_splitting(self, state, k, z, affine_z, prepared):
        forward = z + prepared.step_size * (affine_z - z)
        u = tf.where(tf.equal(k, 0), forward, state)
        u += 2 * prepared.resolvent(forward - u)
        return u, prepared.projection(u)

    def for_linear_systems(self):
        return linear_solver(self)
