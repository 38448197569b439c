"""The safeguard: accelerated steps that lead nowhere are taken back, sample by sample."""

from typing import NamedTuple

import tensorflow as tf

# Accelerated steps of a safeguarded sample must lower the residual by this factor, in so many steps.
_DECREASE = 0.9
_PATIENCE = 15


class SafeguardState(NamedTuple):
    """Where a safeguarded solve returns to: the iterate that its accelerated steps started from."""

    z: tf.Tensor  # [B, D]
    f_z: tf.Tensor  # [B, D]
    residual: tf.Tensor  # [B]
    idle: tf.Tensor  # [B] int32, accelerated iterates since then, none of them enough better
    plain: tf.Tensor  # [B] int32, plain steps still to be made
    streak: tf.Tensor  # [B] int32, plain steps to make after the next refusal
    goal: tf.Tensor  # [B] the residual below which that falls to one again


def initial_state(z: tf.Tensor) -> SafeguardState:
    """The state before the first evaluation; z: [B, D]."""
    batch = tf.shape(z)[:1]
    largest, zeros = tf.fill(batch, z.dtype.max), tf.zeros(batch, tf.int32)
    return SafeguardState(z, z, largest, zeros, zeros, zeros + 1, largest)


def guard(
    base: SafeguardState, z: tf.Tensor, f_z: tf.Tensor, residual: tf.Tensor, factor: float
) -> tuple[SafeguardState, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Sends samples whose accelerated steps lead nowhere back to where those started.

    From there they make plain steps, twice as many after each refusal in a row, which are accepted
    whatever their residual: the accepted iterates then are the whole plain iteration, whatever way
    that takes.

    Args:
        base: the state. z, f_z: [B, D], an iterate and its image. residual: [B], the iterate's.
        factor: by which an accelerated step may raise the residual.

    Returns:
        The new state, the iterate to go on from and its image, and [B] bool: the samples that must
        forget what they have learned, so that their next step is a plain one.
    """
    decrease = tf.constant(_DECREASE, residual.dtype)
    improved = residual < decrease * base.residual
    accepted = ((base.plain > 0) & tf.math.is_finite(residual)) | improved
    idle = tf.where(accepted, 0, base.idle + 1)
    limit = tf.constant(factor, residual.dtype) * base.residual
    # NaN is within no limit.
    hopeless = tf.logical_not(residual <= limit) | (idle >= _PATIENCE)
    refused = hopeless & tf.logical_not(accepted)

    base_z = tf.where(accepted[:, None], z, base.z)
    base_f_z = tf.where(accepted[:, None], f_z, base.f_z)
    z = tf.where(refused[:, None], base_z, z)
    f_z = tf.where(refused[:, None], base_f_z, f_z)
    plain = tf.where(refused, base.streak, tf.maximum(base.plain - 1, 0))
    # Only a best residual ever counts as success: what plain steps raised and others lowered does not.
    calm = tf.where(residual < base.goal, 1, base.streak)
    goal = tf.minimum(base.goal, decrease * residual)
    base = SafeguardState(
        z=base_z,
        f_z=base_f_z,
        residual=tf.where(accepted, residual, base.residual),
        idle=tf.where(refused, 0, idle),
        plain=plain,
        streak=tf.where(refused, 2 * base.streak, calm),
        goal=tf.where(tf.math.is_finite(residual), goal, base.goal),
    )
    return base, z, f_z, plain > 0
