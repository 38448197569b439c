"""Which steps go wrong, counted where they are made: on the device, from reduced values."""

import math
from typing import Any

import tensorflow as tf

# A loss so many times that of the uniform guess, or of the best step, says that the model is lost.
_TIMES = 2.0


class Divergence:
    """Counts the steps in a row, up to now, that went wrong.

    A step goes wrong if its loss or gradient is not finite, or if its loss is above twice the uniform
    guess's and above twice the lowest loss so far. Runs whose first losses are above the uniform
    guess's, as with large embeddings, do not go wrong as long as they fall; nor does a run that was
    better than the guess and returns to it.

    After `patience` such steps in a row the count stays until `reset`, whenever it is looked at.

    Args:
        patience: steps in a row, >= 1.
        uniform_loss: of a guess that knows nothing, in nats; None: only what is not finite goes wrong.

    Attributes:
        consecutive: such steps in a row. high: those among them whose loss was finite; such steps
            changed the weights. lowest: the lowest loss so far.
    """

    def __init__(self, patience: int, uniform_loss: float | None = None):
        self._patience = patience
        self._uniform_loss = math.inf if uniform_loss is None else uniform_loss
        self.consecutive = tf.Variable(0, trainable=False, name="consecutive")
        self.high = tf.Variable(0, trainable=False, name="high")
        self.lowest = tf.Variable(math.inf, trainable=False, name="lowest_loss")

    @property
    def saved(self) -> dict[str, tf.Variable]:
        """What a checkpoint keeps."""
        return {"consecutive": self.consecutive, "high": self.high, "lowest_loss": self.lowest}

    def note(self, loss: tf.Tensor, finite: tf.Tensor, apply: tf.Tensor) -> None:
        """Notes a step, if apply.

        Args:
            loss: [] float32, the mean over all replicas. finite: whether loss and gradient are.
        """
        lowest = tf.where(finite, tf.minimum(self.lowest, loss), self.lowest)
        high = finite & (loss > self._limit(lowest))
        wrong = high | ~finite
        over = self.consecutive >= self._patience
        counts = (
            (self.consecutive, tf.where(wrong, 1, 0)),
            (self.high, tf.where(high, 1, 0)),
        )
        for variable, more in counts:
            count = tf.where(wrong | over, variable + more, 0)
            variable.assign(tf.where(apply, count, variable))
        self.lowest.assign(tf.where(apply, lowest, self.lowest))

    def has_diverged(self) -> bool:
        """Whether as many steps as the patience went wrong in a row."""
        return int(self.consecutive.numpy()) >= self._patience

    def reset(self) -> None:
        """Begins to count anew."""
        self.consecutive.assign(0)
        self.high.assign(0)

    def described(self) -> str:
        """What was wrong with the last steps, to go on with "in each of the last … steps"."""
        if not int(self.high.numpy()):
            return "The loss or its gradient was NaN or Inf"
        lowest = float(self.lowest.numpy())
        return (
            f"The loss was above {float(self._limit(lowest)):.4g} nats, or NaN or Inf (a uniform guess has "
            f"{self._uniform_loss:.4g} nats, the best step so far {lowest:.4g}),"
        )

    def _limit(self, lowest: Any) -> Any:
        return _TIMES * tf.maximum(self._uniform_loss, lowest)
