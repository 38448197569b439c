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
# A step of length λ must bring ‖g‖ below the largest of the last norms by this share of λ. More than
# one norm lets a badly scaled problem pass through a rise that a strict descent would creep around.
_SUFFICIENT_DECREASE = 1e-4
_NORMS = 5
# A refused step is shortened to between these shares of its length.
_SHORTEST, _LONGEST = 0.1, 0.5
# After so many the step is taken as it is: the direction is then no use, and a new linearisation is
# worth more.
_MOST_SHORTENINGS = 10
# Where the linear model missed g by less than this share of the goal, it is good enough to reach it.
_NEGLIGIBLE = 0.25


class NewtonKrylovState(NamedTuple):
    base: tf.Tensor  # [B, D] the last accepted iterate
    norms: (
        tf.Tensor
    )  # [B, 5] ‖g‖ of the last accepted iterates, the newest first; −1 where there is none
    direction: tf.Tensor  # [B, D] the Newton step from there
    length: tf.Tensor  # [B] the share λ of it that led to the iterate to come
    shortenings: tf.Tensor  # [B] int32, how often λ was made smaller
    forcing: tf.Tensor  # [B] η of the last linear solve
    space: krylov.KrylovSpace  # of the last linear solve


@keras.saving.register_keras_serializable(package="tfdeq")
@dataclasses.dataclass(frozen=True)
class NewtonKrylov(Solver):
    """Inexact Newton's method for g(z) = f(z) − z = 0, without a matrix.

    At z_k, GMRES finds δ with ‖g + (J − I) δ‖ ≤ η_k ‖g‖ from products J v alone (two reverse passes
    through one linearisation of f). η_k follows the progress of the residual, so no products
    are spent on accuracy that the linear model does not have. If ‖g(z_k + λ δ)‖ does not fall
    below the largest of the last five norms, λ is reduced to the minimum of a parabola. If the
    linear model predicts g accurately enough to reach the tolerance, its Krylov space is kept and
    extended. So an affine map with at most krylov_steps dimensions needs no more products than it has
    dimensions. Samples do this independently of one another. A product counts as one evaluation of f.

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
        ones = tf.reduce_sum(tf.zeros_like(z), axis=1) + 1  # [B], also of a state without entries
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
        # Nothing is known: whatever comes is accepted.
        first = state.norms[:, 0] < 0
        bound = (1 - _SUFFICIENT_DECREASE * state.length) * tf.reduce_max(state.norms, axis=1)
        accepted = first | (norm <= bound) | (state.shortenings >= _MOST_SHORTENINGS)
        # NaN is below no bound, and may be gone back from as often as it takes.
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
        # An extended space still begins where it was begun.
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
        """[B] bool: whether the last linear model, carried on, leads to the goal."""
        space = state.space
        whole = (state.shortenings == 0) & (state.norms[:, 0] >= 0)
        room = (space.size > 0) & (space.size < self.krylov_steps) & ~space.exhausted
        missed = tf.norm(g - krylov.residual_vector(space), axis=1)
        return whole & room & (missed <= _NEGLIGIBLE * goal)

    def restart(self, state, mask):
        forgotten = tf.where(mask[:, None], -tf.ones_like(state.norms), state.norms)
        return state._replace(norms=forgotten)


def _shorter(state: NewtonKrylovState, norm: tf.Tensor) -> tf.Tensor:
    """[B] the λ at which the parabola through ‖g‖² at 0, its slope there, and ‖g‖² at λ is lowest."""
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
    # What the last η allows is not undercut at once.
    floor = _FORCING_FACTOR * state.forcing**2
    forcing = tf.where(floor > 0.1, tf.maximum(forcing, floor), forcing)
    forcing = tf.where(first, _FIRST_FORCING * tf.ones_like(norm), forcing)
    # No more accuracy than the tolerance asks for.
    enough = 0.5 * goal / tf.where(norm > 0, norm, tf.ones_like(norm))
    return tf.clip_by_value(tf.maximum(forcing, enough), 1e-12, _LARGEST_FORCING)
