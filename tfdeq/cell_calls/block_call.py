"""A layer's solve by blocks of places, for cells that see only a neighbourhood."""

from typing import Any

import keras
import tensorflow as tf

from tfdeq.block_solve import solve_by_blocks
from tfdeq.cell_calls.masks import without_mask
from tfdeq.cell_calls.pure_cell import PureCell
from tfdeq.numerics.fixed_shapes import shapes_are_fixed
from tfdeq.numerics.limits import Limits
from tfdeq.solution import Solution
from tfdeq.solvers import FixedPointIteration, Solver
from tfdeq.solvers.solver import require_positive_integer


class BlockCall:
    """Solves by blocks for a layer.

    Args:
        cell: the layer's cell, with the attribute `reach`: how many places away an application sees
            along each dimension. Its call takes a mask [B, places] and keeps the state at zero outside
            it.
        solver: the layer's solver.
        block: size of a block along each dimension, in places.

    Raises:
        ValueError: for a cell without `reach`, a block smaller than it, or a solver other than plain
            iteration.
    """

    def __init__(self, cell: keras.layers.Layer, solver: Solver, block: int):
        require_positive_integer("block", block)
        self._reach, self._block, self._solver = getattr(cell, "reach", None), block, solver
        if not self._reach:
            raise ValueError(
                "block needs a cell with the attribute `reach`, the number of places that it sees in "
                f"each direction, such as RecallConvolution; received a {type(cell).__name__}."
            )
        if block < self._reach:
            raise ValueError(
                f"block must be at least the cell's reach of {self._reach}; received {block}."
            )
        if type(solver) is not FixedPointIteration or solver.damping != 1.0:
            raise ValueError(
                f'block needs solver="fixed_point_iteration" without damping; received {solver!r}.'
            )

    @staticmethod
    def fits(compaction: bool, iterates: Any, trace: bool) -> bool:
        """Whether a call can be solved by blocks: not compiled by XLA, and without a trace.

        compaction: whether settled parts may leave the solve, which is not allowed in training.
        """
        return compaction and iterates is None and not trace and not shapes_are_fixed()

    def solve(
        self, pure_cell: PureCell, z0: tf.Tensor, x: Any, mask: Any, limits: Limits
    ) -> Solution:
        """Returns the solution of one call.

        Args:
            x: the result of `inject`, leaves [B, places, ...]. mask: [B, places] bool, or None: all
                places.
        """
        x = tf.nest.map_structure(without_mask, x)
        if mask is None:
            mask = tf.ones(tf.shape(z0)[:-1], tf.bool)
        f = pure_cell.function(training=False, mask=mask, x=x)
        limits = limits.resolved(self._solver, tf.shape(z0)[:1], z0.dtype)
        return solve_by_blocks(
            lambda z, x, mask: f(z, x, f.theta, [mask]),
            z0,
            x,
            mask,
            reach=self._reach,
            block=self._block,
            tolerance=limits.tolerance,
            max_steps=limits.max_steps,
        )
