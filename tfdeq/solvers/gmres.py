"""GMRES as a solver for affine maps, such as the adjoint system."""

import dataclasses
from typing import ClassVar

import keras
import tensorflow as tf

from tfdeq.solvers.krylov import gmres
from tfdeq.solvers.solver import Solver, require_positive_integer


@keras.saving.register_keras_serializable(package="tfdeq")
@dataclasses.dataclass(frozen=True)
class GMRES(Solver):
    """Restarted GMRES for f(z) = J z + b, a system (I − J) z = b for each sample.

    From z with r = f(z) − z, the correction δ in the Krylov space of I − J and r minimises
    ‖r − (I − J) δ‖₂ over at most krylov_steps dimensions; then f is evaluated at z + δ, and, if the
    residual is above the tolerance, the method restarts from there. A product J v counts as one
    evaluation of f. For a map that is not affine, each restart would be a Newton step without control: use
    `NewtonKrylov` instead.

    Args:
        max_steps: largest number of evaluations and products per sample. Default 30.
        tolerance: relative residual at which a sample has converged. Default 1e-3.
        krylov_steps: dimensions before a restart, at least 1; as many vectors are kept. Default 20.

    Raises:
        ValueError: for a setting out of range.

    Source: Saad and Schultz, GMRES, SIAM J. Sci. Stat. Comput. 7(3), 1986.

    Example:
        >>> GMRES(krylov_steps=10).krylov_steps
        10
    """

    krylov_steps: int = 20

    uses_products: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        require_positive_integer("krylov_steps", self.krylov_steps)

    def initial_state(self, z, max_steps=None):
        return ()

    def step_with_products(self, state, k, z, f_z, product, running, allowed, tolerance):
        # Half the tolerance, because ‖f(z)‖ at the solution is not known yet.
        target = 0.5 * tolerance * tf.norm(f_z, axis=1)
        allowed = tf.where(running, allowed, 0)
        delta, spent = gmres(product, f_z - z, target, allowed, self.krylov_steps)
        return state, z + delta, spent
