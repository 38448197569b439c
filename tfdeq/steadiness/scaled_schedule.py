"""A learning-rate schedule times a factor that may change while compiled steps use it."""

from typing import Any

import keras

from tfdeq.steadiness.live_number import LiveNumber


@keras.saving.register_keras_serializable(package="tfdeq")
class ScaledSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """scale · schedule(step).

    Args:
        schedule: the schedule. scale: the factor, > 0; `scale.value` may be changed at any time.
    """

    def __init__(
        self, schedule: keras.optimizers.schedules.LearningRateSchedule, scale: float = 1.0
    ):
        self.schedule = schedule
        self.scale = LiveNumber(scale)

    def __call__(self, step: Any) -> Any:
        rate = self.schedule(step)
        return rate * keras.ops.cast(self.scale.read(), getattr(rate, "dtype", "float32"))

    def get_config(self) -> dict[str, Any]:
        schedule = keras.optimizers.schedules.serialize(self.schedule)
        return {"schedule": schedule, "scale": self.scale.value}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ScaledSchedule":
        schedule = keras.optimizers.schedules.deserialize(config["schedule"])
        return cls(schedule, config["scale"])


class RateHalving:
    """Halves the learning rate of an optimizer, whether it is a number or a schedule.

    Args:
        optimizer: the optimizer, possibly inside a LossScaleOptimizer.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer):
        while hasattr(optimizer, "inner_optimizer"):
            optimizer = optimizer.inner_optimizer
        self._optimizer = optimizer
        self._scaled = None

    def prepare(self) -> bool:
        """Prepares the rate for halving; returns whether steps must be traced again."""
        rate = self._optimizer._learning_rate
        if isinstance(rate, ScaledSchedule):
            self._scaled = rate
            return False
        if not isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            return False
        known = self._scaled is not None and self._scaled.schedule is rate
        if not known:
            self._scaled = ScaledSchedule(rate)
        self._optimizer.learning_rate = self._scaled
        return not known

    def finish(self) -> None:
        """Restores the optimizer's own schedule, unless it was scaled."""
        if self._scaled is not None and self._scaled.scale.value == 1.0:
            self._optimizer.learning_rate = self._scaled.schedule

    def halve(self, rate: float) -> bool:
        """Halves the rate; returns whether that was possible (it is not for a user's function).

        Args:
            rate: the rate to halve; the optimizer's variable may have been restored to an older value.
        """
        if self._scaled is not None:
            self._scaled.scale.value *= 0.5
        elif isinstance(self._optimizer._learning_rate, keras.Variable):
            self._optimizer.learning_rate = 0.5 * rate
        else:
            return False
        return True

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(keras.ops.convert_to_numpy(self._optimizer.learning_rate))
