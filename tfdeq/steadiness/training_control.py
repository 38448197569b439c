"""The current training settings of a `DEQLayer`, which every step reads, even if already compiled."""

import tensorflow as tf

from tfdeq.steadiness.live_number import LiveNumber


class TrainingControl:
    """The factors by which a callback changes a layer's Jacobian penalty and its training budget.

    Args:
        penalty_scale: the usual factor of the penalty.

    Attributes:
        active: whether steps that are traced from now on use the factors. Default False.
        penalty_scale: factor of the penalty's weight, >= 0.
        budget_scale: factor of the budget in training, >= 1; initially 1.
    """

    def __init__(self, penalty_scale: float = 1.0):
        self.active = False
        self._usual_scale = float(penalty_scale)
        self.penalty_scale = LiveNumber(penalty_scale)
        self.budget_scale = LiveNumber(1.0)

    def is_raised(self) -> tf.Tensor:
        """Returns whether the penalty's factor is above its usual value, a scalar bool."""
        return self.penalty_scale.read() > self._usual_scale

    def budget(self, own: int | tf.Tensor | None, usual: int) -> int | tf.Tensor | None:
        """Returns the budget of a call in training.

        Args:
            own: the layer's budget for this call; None: the solver's. usual: the solver's max_steps.
        """
        if not self.active:
            return own
        steps = tf.cast(usual if own is None else own, tf.float32)
        return tf.cast(tf.math.ceil(steps * self.budget_scale.read()), tf.int32)
