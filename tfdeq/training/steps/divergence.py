"""Counts the steps that go wrong, on the device, from reduced values."""

import math
from typing import Any

import tensorflow as tf

# With a loss this many times those of the uniform guess and of the best step, the model counts as
# lost.
_TIMES = 2.0


class Divergence:
    """Counts the most recent consecutive steps that went wrong.

    A step goes wrong if its loss or gradient is not finite, or if its loss is above twice that of the
    uniform guess and above twice the lowest loss so far. Steps of runs whose first losses are above
    that of the uniform guess, as with large embeddings, do not go wrong while the losses fall; nor do
    those of a run that was better than the guess and returns to it.

    After `patience` such consecutive steps the count does not change until `reset`, so that it can be
    read later.

    Args:
        patience: number of consecutive steps, >= 1.
        uniform_loss: loss of the uniform guess, in nats; None: a step goes wrong only if it is not
            finite.

    Attributes:
        consecutive: number of such consecutive steps. high: number of those with a finite loss, which
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
        """The variables for a checkpoint."""
        return {"consecutive": self.consecutive, "high": self.high, "lowest_loss": self.lowest}

    def note(self, loss: tf.Tensor, finite: tf.Tensor, apply: tf.Tensor) -> None:
        """Records a step, if apply.

        Args:
            loss: scalar float32, the mean over all replicas. finite: whether loss and gradient are
                finite.
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
        """Whether `patience` consecutive steps went wrong."""
        return int(self.consecutive.numpy()) >= self._patience

    def reset(self) -> None:
        """Resets the count."""
        self.consecutive.assign(0)
        self.high.assign(0)

    def described(self) -> str:
        """Describes the problem with the last steps, to be followed by "in each of the last … steps"."""
        if not int(self.high.numpy()):
            return "The loss or its gradient was NaN or Inf"
        lowest = float(self.lowest.numpy())
        return (
            f"The loss was above {float(self._limit(lowest)):.4g} nats, or NaN or Inf (a uniform guess has "
            f"{self._uniform_loss:.4g} nats, the best step so far {lowest:.4g}),"
        )

    def _limit(self, lowest: Any) -> Any:
        return _TIMES * tf.maximum(self._uniform_loss, lowest)
