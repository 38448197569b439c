"""Watches one layer's residuals in training, and raises its penalty or budget if they are high."""

from typing import Any

from tfdeq.layer import DEQLayer
from tfdeq.steadiness.layer_penalty import BASE_WEIGHT

ACTIONS = ("penalty", "budget", "none")
_LARGEST_PENALTY_SCALE = 16.0
_LARGEST_BUDGET_SCALE = 4.0
_LONGEST_WAIT = 64


class ResidualWatch:
    """Watches the mean residual of a layer's solves and changes the settings of the next steps.

    Above the threshold the penalty's scale doubles (up to 16 times the layer's weight; 0.1, then 0.2, …
    1.6 for a layer without a weight), or the budget grows by a quarter (up to 4 times its value). Below
    half the threshold one change is undone. If that was too early, twice as many consecutive low
    windows are required the next time, at most 64.

    Args:
        layer: a layer with convergence metrics.
        action: "penalty", "budget" or "none". threshold: threshold of the mean relative residual.

    Attributes:
        level: number of current changes. residual: mean of the last window, None before the first one.
        high: consecutive windows above the threshold while nothing more could be raised.
    """

    def __init__(self, layer: DEQLayer, action: str, threshold: float):
        self.layer, self.threshold = layer, threshold
        self._action = action
        self.level = self.high = 0
        self._low, self._wait, self._was_taken_back = 0, 1, False
        self.residual: float | None = None
        self._usual_scale = layer.training_control.penalty_scale.value
        self._seen = (0.0, 0.0, 0.0)
        self._window = [0.0, 0.0]  # residuals, samples

    @property
    def is_low(self) -> bool:
        """Whether the last window's residual was at most the threshold, or there was none."""
        return self.residual is None or self.residual <= self.threshold

    def metrics_were_reset(self) -> None:
        """Records that the layer's metrics start from zero."""
        self._seen = (0.0, 0.0, 0.0)

    def collect(self) -> None:
        """Adds the values that the layer's metrics received since the last call to the window."""
        totals = self.layer._forward_metrics.totals()
        if totals[2] < self._seen[2]:
            self.metrics_were_reset()  # reset elsewhere
        residuals, known, samples = (
            now - before for now, before in zip(totals, self._seen, strict=True)
        )
        self._seen = totals
        # Samples for which f was not finite have no residual, and count as 1.
        self._window[0] += residuals + (samples - known)
        self._window[1] += samples

    def drop_window(self) -> None:
        """Starts a new window without evaluating this one, as after a restore."""
        self._window, self.high = [0.0, 0.0], 0

    def close_window(self) -> str | None:
        """Evaluates the window and starts a new one; returns a description of the change, or None."""
        residuals, samples = self._window
        self._window = [0.0, 0.0]
        self.residual = residuals / samples if samples else None
        if self.residual is None:
            return None
        if not self.residual <= self.threshold:  # NaN too
            if self._was_taken_back:  # too early
                self._wait, self._was_taken_back = min(2 * self._wait, _LONGEST_WAIT), False
            self._low = 0
            changed = self.raise_level()
            self.high = 0 if changed else self.high + 1
        else:
            self.high = 0
            self._low = self._low + 1 if self.residual < 0.5 * self.threshold else 0
            changed = self._low >= self._wait and self.level > 0
            if changed:
                self._low, self._was_taken_back = 0, True
                self.level -= 1
                self.apply()
        return (
            f"{self.layer.name}: residual {self.residual:.3g}, {self.setting}" if changed else None
        )

    def raise_level(self) -> bool:
        """Makes one more change; returns whether there was one to make."""
        if self._action == "none" or self._is_at_its_end():
            return False
        self.level += 1
        self.apply()
        return True

    def apply(self) -> None:
        """Applies the current changes to the layer's training."""
        control = self.layer.training_control
        if self._action == "penalty":
            control.penalty_scale.value = self._penalty_scale()
        elif self._action == "budget":
            control.budget_scale.value = self._budget_scale()

    def release(self) -> None:
        """Removes the changes from the layer's training."""
        self.layer.training_control.penalty_scale.value = self._usual_scale
        self.layer.training_control.budget_scale.value = 1.0

    @property
    def setting(self) -> str:
        """A description of the current penalty or budget."""
        if self._action == "budget":
            return f"budget {self._budget_scale():g} times its own"
        if self.layer.jacobian_penalty == "auto":
            return f"automatic penalty {self._penalty_scale():g} times its own"
        return f"Jacobian penalty {self.penalty_weight:.3g}"

    @property
    def numbers(self) -> dict[str, Any]:
        """Returns the layer's values for TensorBoard."""
        control = self.layer.training_control
        found = {
            "penalty_scale": control.penalty_scale.value,
            "budget_scale": control.budget_scale.value,
        }
        return found if self.residual is None else {"residual": self.residual, **found}

    @property
    def penalty_weight(self) -> float:
        """The current weight of the penalty, if the layer's own weight is a number."""
        weight = self.layer.jacobian_penalty or BASE_WEIGHT
        return weight * self.layer.training_control.penalty_scale.value

    def _penalty_scale(self) -> float:
        if self._usual_scale:
            return 2.0**self.level
        return 2.0 ** (self.level - 1) if self.level else 0.0

    def _budget_scale(self) -> float:
        return 1.0 + 0.25 * self.level

    def _is_at_its_end(self) -> bool:
        if self._action == "penalty":
            return self._penalty_scale() >= _LARGEST_PENALTY_SCALE
        return self._budget_scale() >= _LARGEST_BUDGET_SCALE
