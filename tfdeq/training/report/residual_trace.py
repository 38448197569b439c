"""residuals.json: residuals of some examples after each step, before and after training."""

import os
from collections.abc import Callable
from typing import Any

from tfdeq.programs.workdir import read_json, write_json


def path_in(workdir: str) -> str:
    """Returns the file's path in a run's folder."""
    return os.path.join(workdir, "residuals.json")


class ResidualTrace:
    """Stores the traces of a run.

    Args:
        trace: returns that of the current model; see `Evaluator.residual_trace`. None: nothing is
            solved or stored.
    """

    def __init__(self, trace: Callable[[], dict[str, Any]] | None):
        self._trace = trace

    def before(self, workdir: str) -> None:
        """Writes the trace of the untrained model, if there is none yet."""
        if self._trace is not None and read_json(path_in(workdir)) is None:
            write_json(path_in(workdir), {"before": self._trace()})

    def after(self, workdir: str) -> dict[str, Any]:
        """Writes and returns both traces."""
        if self._trace is None:
            return {}
        residuals = {**(read_json(path_in(workdir)) or {}), "after": self._trace()}
        write_json(path_in(workdir), residuals)
        return residuals
