"""Checks that the served version reaches the qualities in the card's table."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tfdeq.serving.server.isolated import Request
from tfdeq.serving.verification import quality
from tfdeq.serving.verification.checks import LIMIT, Check, Outputs

# Allowed differences between two computations of a row: if only rounding decides whether a window's
# residual meets a tolerance, it may stop one step apart, and residuals near float32's precision are
# rounding themselves.
_STEPS_SLACK, _RESIDUAL_SLACK, _SMALLEST_RESIDUAL = 0.02, 0.05, 5e-7


class Quality(NamedTuple):
    """A card's table and its measurement."""

    table: quality.Table | None  # None: the data that it was measured on are not available
    said: Any  # the card's rows; None if it has none

    def requests(self) -> list[Request]:
        """Returns the examples at each tolerance; [] if nothing can be compared, which `check` reports."""
        if self.table is None or self.said is None or not self._is_complete():
            return []
        return [
            Request("quality", self.table.signature, inputs)
            for tolerance in self.table.tolerances
            for inputs in self.table.requests(tolerance)
        ]

    def check(self, outputs: Sequence[Outputs], runtime: str) -> Check:
        """Checks that every row of the table, measured again, is equal up to rounding.

        Args:
            outputs: the answers to `requests`.
        """
        name = f"{runtime}: the card's quality by tolerance"
        if self.said is None:
            return Check(name, True, "the card has no such table", {})
        if self.table is None:
            return Check(name, True, "not measured: the data that it is of are not here", {})
        if not self._is_complete():
            text = f"the card's table is not of the tolerances {list(self.table.tolerances)}"
            return Check(name, False, text, {})
        tolerances = self.table.tolerances
        count = len(outputs) // len(tolerances)
        found = [
            self.table.row(tolerance, outputs[place * count : (place + 1) * count])
            for place, tolerance in enumerate(tolerances)
        ]
        wrong = [
            f"at {row['tolerance']:g}: {entry} is {row.get(entry)}, the card says {said.get(entry)}"
            for row, said in zip(found, self.said, strict=True)
            for entry in {**row, **said}
            if not _equal(entry, row, said, self.table.count)
        ]
        text = f"{len(found)} rows over {self.table.count} examples, measured anew, are the card's"
        if wrong:
            text = f"{'; '.join(wrong[:3])} ({len(wrong)} findings)"
        return Check(name, not wrong, text, {"measured": found, "wrong": wrong})

    def _is_complete(self) -> bool:
        if not isinstance(self.said, list) or not all(isinstance(r, Mapping) for r in self.said):
            return False
        return [row.get("tolerance") for row in self.said] == list(self.table.tolerances)


def _equal(entry: str, row: Mapping[str, Any], said: Mapping[str, Any], count: int) -> bool:
    one, other = row.get(entry), said.get(entry)
    if not isinstance(one, float) or not isinstance(other, int | float):
        return False
    slack = {
        "tolerance": 0.0,
        "steps": _STEPS_SLACK * one,
        "converged": 1.01 / count,
        "residual": _RESIDUAL_SLACK * one + _SMALLEST_RESIDUAL,
        "largest_residual": _RESIDUAL_SLACK * one + _SMALLEST_RESIDUAL,
    }
    # Figures of quality are compared like answers.
    return abs(one - other) <= slack.get(entry, LIMIT * max(1.0, abs(one)))
