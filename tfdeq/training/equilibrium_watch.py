"""The equilibrium watch: a larger Jacobian penalty or budget while residuals are high."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfdeq.training.schedule import StepSettings

ACTIONS = ("penalty", "budget", "none")
_LARGEST_PENALTY_SCALE = 16.0
_LARGEST_BUDGET_SCALE = 4


class EquilibriumWatch:
    """Checks each row's mean residual at the budget and changes the settings of the next steps.

    Above the threshold the penalty's weight doubles (up to 16 times its value), or the budget grows by
    a quarter (up to 4 times its value). While the residual is below half the threshold, one such change
    is undone per row. If the penalty should rise but there is none, the watch prints this once.

    Args:
        config: equilibrium_watch ("penalty", "budget" or "none"), watch_residual, the threshold, and
            jacobian_penalty.
    """

    def __init__(self, config: Mapping[str, Any]):
        self._action = config["equilibrium_watch"]
        self._threshold = config["watch_residual"]
        self._budget = config["max_steps"]
        self._nothing_to_raise = self._action == "penalty" and not config["jacobian_penalty"]
        self._said = False
        # Number of current changes, which is part of a checkpoint.
        self.level = tf.Variable(0, trainable=False, name="watch_level")

    @property
    def active(self) -> bool:
        """Whether rows of the curves change later steps."""
        return self._action != "none"

    def observe(self, residual: float | None) -> str | None:
        """Takes a row's mean residual and returns a description of the change, or None."""
        if not self.active or residual is None:
            return None
        if self._nothing_to_raise:
            return self._advice(residual)
        level = int(self.level)
        if residual > self._threshold and not self._is_at_its_end(level):
            self.level.assign(level + 1)
        elif residual < 0.5 * self._threshold and level:
            self.level.assign(level - 1)
        else:
            return None
        return f"residual {residual:.3g}: {self._described()}"

    def applied(self, settings: StepSettings) -> StepSettings:
        """Returns a step's settings with the current changes."""
        share = settings.penalty_share * self.penalty_scale
        return settings._replace(
            penalty_share=share, max_steps=settings.max_steps + self.extra_steps
        )

    @property
    def penalty_scale(self) -> float:
        """The factor of the penalty's weight, >= 1."""
        return 2.0 ** int(self.level) if self._action == "penalty" else 1.0

    @property
    def extra_steps(self) -> int:
        """Evaluations beyond the schedule's budget, >= 0."""
        quarter = max(self._budget // 4, 1)
        return int(self.level) * quarter if self._action == "budget" else 0

    def _advice(self, residual: float) -> str | None:
        """Returns advice for the user, the first time that a residual is high."""
        if self._said or residual <= self._threshold:
            return None
        self._said = True
        return (
            f"residual {residual:.3g}, over --watch_residual={self._threshold:g}: there is no Jacobian "
            "penalty to raise. Give --jacobian_penalty, for example 0.5, or --equilibrium_watch=budget."
        )

    def _is_at_its_end(self, level: int) -> bool:
        if self._action == "penalty":
            return 2.0**level >= _LARGEST_PENALTY_SCALE
        quarter = max(self._budget // 4, 1)
        return level * quarter >= (_LARGEST_BUDGET_SCALE - 1) * self._budget

    def _described(self) -> str:
        if self._action == "penalty":
            return f"the Jacobian penalty counts {self.penalty_scale:g} times"
        return f"the budget is {self.extra_steps} evaluations larger"
