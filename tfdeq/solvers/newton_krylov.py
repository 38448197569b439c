"""Inexact Newton's method with matrix-free GMRES and a backtracking line search."""

import dataclasses
from typing import ClassVar, NamedTuple

import keras
import tensorflow as tf

from tfdeq.rows import choose
from tfdeq.solvers import krylov
from tfdeq.solvers.solver import Solver, require_positive_integer

# Eisenstat and Walker, choice 2: η = γ (‖g‖ / ‖g_before‖)².
_FORCING_FACTOR = 0.9
_LARGEST_FORCING = 0.9
_FIRST_FORCING = 0.5
# A step of length λ must reduce ‖g‖ below the largest of the last norms by this share of λ. With
# several norms, a badly scaled problem may pass a rise that strict descent would have to avoid
# slowly.
_SUFFICIENT_DECREASE = 1e-4
_NORMS = 5
# A rejected step is shortened to between these shares of its length.
_SHORTEST, _LONGEST = 0.1, 0.5
# After this many shortenings the step is accepted: the direction is not useful then, and a new
# linearisation is better.
_MOST_SHORTENINGS = 10
# If the linear model's error of g is less than this share of the goal, it is accurate enough to
# reach the goal.
_NEGLIGIBLE = 0.25


class NewtonKrylovState(NamedTuple):
    base: tf.Tensor  # [B, D] the last accepted iterate
    norms: tf.Tensor  # [B, 5] ‖g‖ of the last accepted iterates, newest first; −1 if none
    direction: tf.Tensor  # [B, D] the Newton step from there
    length: tf.Tensor  # [B] the share λ of it that gives the next iterate
    shortenings: tf.Tensor  # [B] int32, how often λ was reduced
    forcing: tf.Tensor  # [B] η of the last linear solve
    space: krylov.KrylovSpace  # of the last linear solve


@keras.saving.register_keras_serializable(package="tfdeq")
@dataclasses.dataclass(frozen=True)
class NewtonKrylov(Solver):
    """Inexact Newton's method for g(z) = f(z) − z = 0, without a matrix.

    At z_k, GMRES finds δ with ‖g + (J − I) δ‖ ≤ η_k ‖g‖ using only products J v (two reverse passes
    through one linearisation of f). η_k follows the progress of the residual, so no products are spent
    on accuracy that the linear model does not have. If ‖g(z_k + λ δ)‖ does not fall below the largest
    of the last five norms, λ is reduced to the minimum of a parabola. If the linear model predicts g
    accurately enough to reach the tolerance, its Krylov space is kept and extended. So an affine map
    with at most krylov_steps dimensions needs no more products than it has dimensions. Samples are
    independent of one another. A product counts as one evaluation of f.

    Args:
        max_steps: largest number of evaluations and products per sample. Default 100.
        tolerance: relative residual at which a sample has converged. Default 1e-3.
        krylov_steps: largest number of products per linearisation, at least 1; as many vectors are kept.
            Default 20.

    Raises:
        ValueError: for a setting out of range.

    Source: Knoll and Keyes, Jacobian-free Newton-Krylov methods, J. Comput. Phys. 193(2), 2004;
        forcing: Eisenstat and Walker, Choosing the Forcing Terms in an Inexact Newton Method, SIAM J.
        Sci. Comput. 17(1), 1996, choice 2; line search: Kelley, Iterative Methods for Linear and
        Nonlinear Equations, 1995, section 8.3, made non-monotone after Grippo, Lampariello, Lucidi,
        SIAM J. Numer. Anal. 23(4), 1986.

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
        ones = tf.reduce_sum(tf.zeros_like(z), axis=1) + 1  # [B], also for a state without entries
        return NewtonKrylovState(
            base=z,
            norms=-ones[:, None] * tf.ones([_NORMS], z.dtype),
            direction=tf.zeros_like(z),
            length=ones,
            shortenings=tf.zeros(tf.shape(ones), tf.int32),
            forcing=_FIRST_FORCING * ones,
            space=krylov.empty_space(tf.zeros_like(z), self.krylov_steps),
        )

    def step_with_products(self, state, k, z, f_z, product, running, allowed, tolerance):
        g = f_z - z
        norm = tf.norm(g, axis=1)
        # There is no earlier norm, so the first iterate is always accepted.
        first = state.norms[:, 0] < 0
        bound = (1 - _SUFFICIENT_DECREASE * state.length) * tf.reduce_max(state.norms, axis=1)
        accepted = first | (norm <= bound) | (state.shortenings >= _MOST_SHORTENINGS)
        # NaN is never accepted, and any number of shortenings is allowed to leave it.
        accepted &= tf.math.is_finite(norm)

        goal = tolerance * tf.norm(f_z, axis=1)
        forcing = _forcing(state, norm, first, goal)
        trusted = accepted & self._trusted(state, g, goal)
        space = choose(trusted, state.space, krylov.empty_space(g, self.krylov_steps))
        before = space.size
        target = tf.where(trusted, 0.5 * goal, forcing * norm)
        spend = tf.where(running & accepted, allowed, 0)
        space = choose(accepted, krylov.extend(space, product, target, spend), state.space)
        spent = tf.where(accepted, space.size - before, 0)
        delta = tf.where((space.size > 0)[:, None], krylov.solution(space), g)

        length = tf.where(accepted, tf.ones_like(norm), _shorter(state, norm))
        direction = tf.where(accepted[:, None], delta, state.direction)
        # An extended space keeps its base.
        base = tf.where((accepted & ~trusted)[:, None], z, state.base)
        norms = tf.concat([norm[:, None], state.norms[:, :-1]], axis=1)
        new = NewtonKrylovState(
            base=base,
            norms=tf.where(accepted[:, None], norms, state.norms),
            direction=direction,
            length=length,
            shortenings=tf.where(accepted, 0, state.shortenings + 1),
            forcing=tf.where(accepted, forcing, state.forcing),
            space=space,
        )
        return new, base + length[:, None] * direction, spent

    def _trusted(self, state: NewtonKrylovState, g: tf.Tensor, goal: tf.Tensor) -> tf.Tensor:
        """[B] bool: whether extending the last linear model leads to the goal."""
        space = state.space
        whole = (state.shortenings == 0) & (state.norms[:, 0] >= 0)
        room = (space.size > 0) & (space.size < self.krylov_steps) & ~space.exhausted
        missed = tf.norm(g - krylov.residual_vector(space), axis=1)
        return whole & room & (missed <= _NEGLIGIBLE * goal)

    def restart(self, state, mask):
        forgotten = tf.where(mask[:, None], -tf.ones_like(state.norms), state.norms)
        return state._replace(norms=forgotten)


def _shorter(state: NewtonKrylovState, norm: tf.Tensor) -> tf.Tensor:
    """[B] λ that minimises the parabola given by ‖g‖² at 0, its slope there, and ‖g‖² at the last λ."""
    length, start = state.length, tf.square(state.norms[:, 0])
    # The slope is −2 ‖g‖² for an exact Newton step.
    curvature = (tf.square(norm) - start + 2 * start * length) / tf.square(length)
    usable = tf.math.is_finite(curvature) & (curvature > 0)
    lowest = start / tf.where(usable, curvature, 1)
    lowest = tf.where(usable, lowest, _SHORTEST * length)
    return tf.clip_by_value(lowest, _SHORTEST * length, _LONGEST * length)


def _forcing(
    state: NewtonKrylovState, norm: tf.Tensor, first: tf.Tensor, goal: tf.Tensor
) -> tf.Tensor:
    """η of the next linear solve, [B]; goal: [B], the ‖g‖ at which the sample will be done."""
    ratio = norm / tf.where(first, tf.ones_like(norm), state.norms[:, 0])
    forcing = _FORCING_FACTOR * ratio**2
    # η must not fall much faster than the last η allows.
    floor = _FORCING_FACTOR * state.forcing**2
    forcing = tf.where(floor > 0.1, tf.maximum(forcing, floor), forcing)
    forcing = tf.where(first, _FIRST_FORCING * tf.ones_like(norm), forcing)
    # No more accuracy than the tolerance requires.
    enough = 0.5 * goal / tf.where(norm > 0, norm, tf.ones_like(norm))
    return tf.clip_by_value(tf.maximum(forcing, enough), 1e-12, _LARGEST_FORCING)
