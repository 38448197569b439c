"""The limits of one call, for each sample, which override the solver's settings."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfdeq.rows import per_sample

if TYPE_CHECKING:
    from tfdeq.solvers.solver import Solver


class Limits(NamedTuple):
    """When the solve of a sample ends. None: the solver's setting.

    Attributes:
        tolerance: scalar or [B] > 0, relative residual at which a sample has converged.
        max_steps: scalar or [B] integers >= 1, largest number of evaluations.
        patience: scalar or [B] integers >= 1, iterates without progress after which a sample has
            stagnated.
        absolute_tolerance: scalar or [B] >= 0, ‖f(z) − z‖₂ at which a sample has also converged.
    """

    tolerance: Any = None
    max_steps: Any = None
    patience: Any = None
    absolute_tolerance: Any = None

    def resolved(self, solver: "Solver", batch: tf.Tensor, dtype: tf.DType) -> "Limits":
        """Returns the limits of each sample, [B], with the solver's in place of None.

        Args:
            solver: the solver, for defaults. batch: [1] int32, the batch size. dtype: dtype of the
                tolerances.
        """
        # No limit: a patience larger than any budget.
        patience = tf.int32.max if solver.patience is None else solver.patience
        return Limits(
            per_sample("tolerance", self.tolerance, solver.tolerance, batch, dtype),
            per_sample("max_steps", self.max_steps, solver.max_steps, batch, tf.int32),
            per_sample("patience", self.patience, patience, batch, tf.int32),
            per_sample(
                "absolute_tolerance",
                self.absolute_tolerance,
                solver.absolute_tolerance,
                batch,
                dtype,
                zero=True,
            ),
        )

    def most_steps(self, solver: "Solver") -> int | None:
        """Returns the largest budget of a sample; None if it is unknown until the graph runs."""
        if self.max_steps is None:
            return solver.max_steps
        known = tf.get_static_value(self.max_steps)
        return None if known is None or not np.size(known) else int(np.max(known))
