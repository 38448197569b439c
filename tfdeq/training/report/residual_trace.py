"""residuals.json: how far from equilibrium some examples are after each step, before and after training."""

import os
from collections.abc import Callable
from typing import Any

from tfdeq.programs.workdir import read_json, write_json


def path_in(workdir: str) -> str:
    """Returns the file's path in a run's folder."""
    return os.path.join(workdir, "residuals.json")


class ResidualTrace:
    """Keeps the traces of a run.

    Args:
        trace: returns one of the model as it is; see `Evaluator.residual_trace`. None: nothing is solved,
            and nothing is kept.
    """

    def __init__(self, trace: Callable[[], dict[str, Any]] | None):
        self._trace = trace

    def before(self, workdir: str) -> None:
        """Writes the trace of the untrained model, where none is there."""
        if self._trace is not None and read_json(path_in(workdir)) is None:
            write_json(path_in(workdir), {"before": self._trace()})

    def after(self, workdir: str) -> dict[str, Any]:
        """Writes and returns both traces."""
        if self._trace is None:
            return {}
        residuals = {**(read_json(path_in(workdir)) or {}), "after": self._trace()}
        write_json(path_in(workdir), residuals)
        return residuals
