"""Whether the card's table of quality by tolerance is what the served version reaches."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfdeq.serving.server.isolated import Request
from tfdeq.serving.verification import quality
from tfdeq.serving.verification.checks import LIMIT, Check, Outputs

# What two computations of one row may differ by: a window whose residual meets a tolerance by rounding
# alone may stop a step apart, and residuals near what float32 can reach are rounding themselves.
_STEPS_SLACK, _RESIDUAL_SLACK, _SMALLEST_RESIDUAL = 0.02, 0.05, 5e-7


class Quality(NamedTuple):
    """A card's table, and what it was measured on."""

    windows: np.ndarray  # [N, T] int32; N = 0: not here
    table: Any  # the card's; None: it has none
    tolerances: Sequence[float]  # those that an export of the model measures

    def requests(self) -> list[Request]:
        """The windows at each tolerance; none where nothing can be compared, as `check` says then."""
        if self.table is None or not len(self.windows) or not self._is_complete():
            return []
        return [
            Request("quality", "score", inputs)
            for tolerance in self.tolerances
            for inputs in quality.requests(self.windows, tolerance)
        ]

    def check(self, outputs: Sequence[Outputs], runtime: str) -> Check:
        """Every row of the table, measured anew: equal but for rounding.

        Args:
            outputs: answers to `requests`.
        """
        name = f"{runtime}: the card's quality by tolerance"
        if self.table is None:
            return Check(name, True, "the card has no such table", {})
        if not self._is_complete():
            text = f"the card's table is not of the tolerances {list(self.tolerances)}"
            return Check(name, False, text, {})
        if not len(self.windows):
            return Check(name, True, "not measured: the text that it is of is not here", {})
        count = len(outputs) // len(self.tolerances)
        found = [
            quality.row(tolerance, outputs[place * count : (place + 1) * count])
            for place, tolerance in enumerate(self.tolerances)
        ]
        wrong = [
            f"at {row['tolerance']:g}: {entry} is {row.get(entry)}, the card says {said.get(entry)}"
            for row, said in zip(found, self.table, strict=True)
            for entry in {**row, **said}
            if not _equal(entry, row, said, len(self.windows))
        ]
        text = f"{len(found)} rows over {len(self.windows)} windows, measured anew, are the card's"
        if wrong:
            text = f"{'; '.join(wrong[:3])} ({len(wrong)} findings)"
        return Check(name, not wrong, text, {"measured": found, "wrong": wrong})

    def _is_complete(self) -> bool:
        if not isinstance(self.table, list) or not all(isinstance(r, Mapping) for r in self.table):
            return False
        return [row.get("tolerance") for row in self.table] == list(self.tolerances)


def _equal(entry: str, row: Mapping[str, Any], said: Mapping[str, Any], count: int) -> bool:
    one, other = row.get(entry), said.get(entry)
    if not isinstance(one, float) or not isinstance(other, int | float):
        return False
    slack = {
        "bits_per_token": LIMIT * max(1.0, abs(one)),
        "steps": _STEPS_SLACK * one,
        "converged": 1.01 / count,
        "residual": _RESIDUAL_SLACK * one + _SMALLEST_RESIDUAL,
        "largest_residual": _RESIDUAL_SLACK * one + _SMALLEST_RESIDUAL,
    }
    return abs(one - other) <= slack.get(entry, 0.0)
