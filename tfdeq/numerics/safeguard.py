"""The safeguard: accelerated steps without progress are undone, sample by sample."""

from typing import NamedTuple

import tensorflow as tf

# Accelerated steps of a safeguarded sample must lower the residual by this factor within _PATIENCE
# steps.
_DECREASE = 0.9
_PATIENCE = 15


class SafeguardState(NamedTuple):
    """The iterate at which accelerated steps started, to which a safeguarded solve returns."""

    z: tf.Tensor  # [B, D]
    f_z: tf.Tensor  # [B, D]
    residual: tf.Tensor  # [B]
    idle: tf.Tensor  # [B] int32, accelerated iterates since then without enough progress
    plain: tf.Tensor  # [B] int32, plain steps still to be made
    streak: tf.Tensor  # [B] int32, plain steps to make after the next rejection
    goal: tf.Tensor  # [B] the residual below which `streak` is reset to one


def initial_state(z: tf.Tensor) -> SafeguardState:
    """The state before the first evaluation; z: [B, D]."""
    batch = tf.shape(z)[:1]
    largest, zeros = tf.fill(batch, z.dtype.max), tf.zeros(batch, tf.int32)
    return SafeguardState(z, z, largest, zeros, zeros, zeros + 1, largest)


def guard(
    base: SafeguardState, z: tf.Tensor, f_z: tf.Tensor, residual: tf.Tensor, factor: float
) -> tuple[SafeguardState, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns samples whose accelerated steps made no progress to where these steps started.

    From there they make plain steps, twice as many after each consecutive rejection. Plain steps are
    accepted with any residual, so the accepted iterates follow the plain iteration.

    Args:
        base: the state. z, f_z: [B, D], an iterate and its image. residual: [B], that of the iterate.
        factor: factor by which an accelerated step may raise the residual.

    Returns:
        The new state, the iterate to continue from and its image, and [B] bool: the samples whose
        solver state must be reset, so that their next step is a plain one.
    """
    decrease = tf.constant(_DECREASE, residual.dtype)
    improved = residual < decrease * base.residual
    accepted = ((base.plain > 0) & tf.math.is_finite(residual)) | improved
    idle = tf.where(accepted, 0, base.idle + 1)
    limit = tf.constant(factor, residual.dtype) * base.residual
    # NaN is never within the limit.
    hopeless = tf.logical_not(residual <= limit) | (idle >= _PATIENCE)
    refused = hopeless & tf.logical_not(accepted)

    base_z = tf.where(accepted[:, None], z, base.z)
    base_f_z = tf.where(accepted[:, None], f_z, base.f_z)
    z = tf.where(refused[:, None], base_z, z)
    f_z = tf.where(refused[:, None], base_f_z, f_z)
    plain = tf.where(refused, base.streak, tf.maximum(base.plain - 1, 0))
    # Only a new best residual counts as success, not a residual that plain steps raised and others
    # lowered.
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
