"""What a `DEQLayer` trains with now: read by each step, also by steps that are compiled already."""

import tensorflow as tf

from tfdeq.steadiness.live_number import LiveNumber


class TrainingControl:
    """The factors by which a callback changes a layer's Jacobian penalty and its training budget.

    Args:
        penalty_scale: the first factor's usual value.

    Attributes:
        active: whether steps that are traced from now on have the factors in them. Default False.
        penalty_scale: what the penalty's weight is multiplied by, >= 0.
        budget_scale: what the evaluations in training are multiplied by, >= 1; at first 1.
    """

    def __init__(self, penalty_scale: float = 1.0):
        self.active = False
        self._usual_scale = float(penalty_scale)
        self.penalty_scale = LiveNumber(penalty_scale)
        self.budget_scale = LiveNumber(1.0)

    def is_raised(self) -> tf.Tensor:
        """Returns whether the penalty counts more than usual, [] bool."""
        return self.penalty_scale.read() > self._usual_scale

    def budget(self, own: int | tf.Tensor | None, usual: int) -> int | tf.Tensor | None:
        """Returns the evaluations of a call in training.

        Args:
            own: of the layer for this call; None: the solver's. usual: the solver's max_steps.
        """
        if not self.active:
            return own
        steps = tf.cast(usual if own is None else own, tf.float32)
        return tf.cast(tf.math.ceil(steps * self.budget_scale.read()), tf.int32)
