"""Inexact Newton's method with matrix-free GMRES and a backtracking line search."""

import dataclasses
from typing import ClassVar, NamedTuple

import keras
import tensorflow as tf

from tfdeq.solvers.krylov import gmres
from tfdeq.solvers.solver import Solver, require_positive_integer

# Eisenstat and Walker, choice 2: η = γ (‖g‖ / ‖g_before‖)².
_FORCING_FACTOR = 0.9
_LARGEST_FORCING = 0.9
_FIRST_FORCING = 0.5
# A step of length λ must lower ‖g‖ by this share of λ.
_SUFFICIENT_DECREASE = 1e-4
# After so many halvings the step is taken as it is: the direction is then no use, and a new
# linearisation is worth more.
_MOST_HALVINGS = 10


class NewtonKrylovState(NamedTuple):
    base: tf.Tensor  # [B, D] the last accepted iterate
    base_norm: tf.Tensor  # [B] ‖g‖ there; the dtype's largest number before the first one
    direction: tf.Tensor  # [B, D] the Newton step from there
    length: tf.Tensor  # [B] the share λ of it that led to the iterate to come
    halvings: tf.Tensor  # [B] int32, how often λ was halved
    forcing: tf.Tensor  # [B] η of the last linear solve


@keras.saving.register_keras_serializable(package="tfdeq")
@dataclasses.dataclass(frozen=True)
class NewtonKrylov(Solver):
    """Inexact Newton's method for g(z) = f(z) − z = 0, without a matrix.

    At z_k, GMRES finds δ with ‖g + (J − I) δ‖ ≤ η_k ‖g‖ from products J v alone (two reverse passes
    through one linearisation of f); η_k follows the progress of the residual, so that no product
    is wasted on accuracy that the linear model does not have. Where ‖g(z_k + λ δ)‖ does not fall
    enough, λ is halved. Samples do this independently of one another. A product counts as one
    evaluation of f.

    Args:
        max_steps: evaluations and products at most, per sample. Default 100.
        tolerance: relative residual at which a sample is done. Default 1e-3.
        krylov_steps: products per Newton step at most, at least 1; that many vectors are kept.
            Default 20.

    Raises:
        ValueError: for a setting out of range.

    Source: Knoll and Keyes, Jacobian-free Newton-Krylov methods, J. Comput. Phys. 193(2), 2004;
        forcing: Eisenstat and Walker, Choosing the Forcing Terms in an Inexact Newton Method, SIAM J.
        Sci. Comput. 17(1), 1996, choice 2; line search: Kelley, Iterative Methods for Linear and
        Nonlinear Equations, 1995, section 8.2.

    Example:
        >>> NewtonKrylov(krylov_steps=10).krylov_steps
        10
    """

    max_steps: int = 100
    krylov_steps: int = 20

    uses_products: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        require_positive_integer("krylov_steps", self.krylov_steps)

    @property
    def recovers(self):
        return True

    def initial_state(self, z, max_steps=None):
        ones = tf.ones_like(z[:, 0])
        return NewtonKrylovState(
            base=z,
            base_norm=ones * z.dtype.max,
            direction=tf.zeros_like(z),
            length=ones,
            halvings=tf.zeros(tf.shape(ones), tf.int32),
            forcing=_FIRST_FORCING * ones,
        )

    def step_with_products(self, state, k, z, f_z, product, running, allowed, tolerance):
        g = f_z - z
        norm = tf.norm(g, axis=1)
        enough = norm <= (1 - _SUFFICIENT_DECREASE * state.length) * state.base_norm
        accepted = enough | (state.halvings >= _MOST_HALVINGS)
        # NaN is no decrease; a step into NaN may be halved as often as it takes.
        accepted &= tf.math.is_finite(norm)

        forcing = _forcing(state, norm, tolerance * tf.norm(f_z, axis=1))
        spend = tf.where(running & accepted, allowed, 0)
        delta, spent = gmres(product, g, forcing * norm, spend, self.krylov_steps)

        length = tf.where(accepted, tf.ones_like(norm), 0.5 * state.length)
        direction = tf.where(accepted[:, None], delta, state.direction)
        base = tf.where(accepted[:, None], z, state.base)
        new = NewtonKrylovState(
            base=base,
            base_norm=tf.where(accepted, norm, state.base_norm),
            direction=direction,
            length=length,
            halvings=tf.where(accepted, 0, state.halvings + 1),
            forcing=tf.where(accepted, forcing, state.forcing),
        )
        return new, base + length[:, None] * direction, spent

    def restart(self, state, mask):
        largest = tf.ones_like(state.base_norm) * state.base_norm.dtype.max
        forcing = _FIRST_FORCING * tf.ones_like(state.forcing)
        return state._replace(
            base_norm=tf.where(mask, largest, state.base_norm),
            forcing=tf.where(mask, forcing, state.forcing),
        )


def _forcing(state: NewtonKrylovState, norm: tf.Tensor, goal: tf.Tensor) -> tf.Tensor:
    """η of the next linear solve, [B]; goal: [B], the ‖g‖ at which the sample will be done."""
    first = state.base_norm >= state.base_norm.dtype.max
    ratio = norm / tf.where(first, tf.ones_like(norm), state.base_norm)
    forcing = _FORCING_FACTOR * ratio**2
    # What the last η allows is not undercut at once.
    floor = _FORCING_FACTOR * state.forcing**2
    forcing = tf.where(floor > 0.1, tf.maximum(forcing, floor), forcing)
    forcing = tf.where(first, _FIRST_FORCING * tf.ones_like(norm), forcing)
    # No more accuracy than the tolerance asks for.
    enough = 0.5 * goal / tf.where(norm > 0, norm, tf.ones_like(norm))
    return tf.clip_by_value(tf.maximum(forcing, enough), 1e-12, _LARGEST_FORCING)
