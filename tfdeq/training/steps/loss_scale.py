"""Dynamic loss scaling for float16, whose gradients would underflow without it."""

from typing import Any

import tensorflow as tf

_GROWTH_STEPS = 2000
_FIRST = 2.0**15


class LossScale:
    """A factor of the loss that halves when a gradient overflows and doubles after 2,000 good steps.

    Only mixed_float16 has one, because bfloat16 has the exponent range of float32. Keras's
    LossScaleOptimizer has the same policy, but inside the optimiser, where each replica's gradient is
    checked and clipped before the reduction; here the reduced gradient is checked.

    Args:
        precision: the dtype policy of the model.

    Source: Micikevicius et al., Mixed Precision Training, arXiv:1710.03740, section 3.2.
    """

    def __init__(self, precision: str):
        self.variables: list[tf.Variable] = []
        if precision == "mixed_float16":
            self.variables = [
                tf.Variable(_FIRST, trainable=False, name="loss_scale"),
                tf.Variable(0, trainable=False, name="good_steps"),
            ]

    def value(self) -> Any:
        """The factor, a scalar float32; 1.0 if there is none."""
        return tf.convert_to_tensor(self.variables[0]) if self.variables else 1.0

    def scaled(self, loss: tf.Tensor) -> tf.Tensor:
        """Returns the loss to differentiate."""
        return loss * self.value() if self.variables else loss

    def unscaled(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        """Returns the gradients of the unscaled loss."""
        if not self.variables:
            return gradients
        return [gradient / self.value() for gradient in gradients]

    def update(self, finite: tf.Tensor, apply: tf.Tensor) -> None:
        """Records whether a step was finite, if apply."""
        if not self.variables:
            return
        scale, good_steps = self.variables
        count = tf.where(finite, good_steps + 1, 0)
        grown = count >= _GROWTH_STEPS
        larger = tf.where(grown, 2.0 * scale, scale)
        changed = tf.where(finite, larger, tf.maximum(0.5 * scale, 1.0))
        scale.assign(tf.where(apply, changed, scale))
        good_steps.assign(tf.where(apply, tf.where(grown, 0, count), good_steps))
