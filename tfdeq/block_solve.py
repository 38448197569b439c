"""Plain iteration block by block, which computes only the blocks that still change."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tfdeq.numerics.block_grid import BlockGrid
from tfdeq.rows import choose
from tfdeq.solution import Solution, Status

_EPSILON = 1e-12
# A block has settled at this share of the tolerance, because neighbours that settle later move it a
# little.
_SHARE = 0.5
# Largest number of consecutive sweeps of a block while others wait.
_TURNS = 32


class _Sweeps(NamedTuple):
    """The state of the loop over sweeps."""

    z: tf.Tensor  # [B · padded places, d], the state with a margin of zeros around each sample
    active: tf.Tensor  # [B, blocks] bool, blocks that may still change
    since: tf.Tensor  # [B, blocks] int64, the application at which a block's wait began
    turns: tf.Tensor  # [B, blocks] int32, sweeps of the block since then
    spent: tf.Tensor  # [B] int32, applications so far
    failed: tf.Tensor  # [B] bool, whether f was not finite


def solve_by_blocks(
    f: Callable[[tf.Tensor, Any, tf.Tensor], tf.Tensor],
    z0: tf.Tensor,
    x: Any,
    mask: tf.Tensor,
    *,
    reach: int,
    block: int,
    tolerance: tf.Tensor,
    max_steps: tf.Tensor,
    applications: int = 8,
) -> Solution:
    """Solves z = f(z, x) by plain iteration, for an f that sees only the neighbourhood of a place.

    The places are divided into blocks, which are all active at first. A sweep applies f a few times
    to active blocks, with a margin as wide as the reach of these applications. Among neighbouring
    active blocks, the one that has waited longest is swept, until it has settled or has had 32
    sweeps. So the inputs of a block settle first where possible. If a block changes within reach of
    its neighbours, they become active; all other blocks stay inactive. The cost of an answer that
    travels through the places therefore depends on the places that it passes, not on the size of
    the whole state. After the sweeps, f is applied once to all places. This gives the residual of
    the whole state, and blocks whose residual is too large become active again.

    The order in which places are updated differs from plain iteration. If f has only one equilibrium, for
    example because it is a contraction, the result is the same up to the tolerance.

    Args:
        f: (z, x, mask) -> like z, for any number of places. It keeps places outside the mask at
            zero.
        z0: [B, places, d], zero outside the mask; the places have one or two dimensions.
        x: nest of tensors [B, places, ...].
        mask: [B, places] bool, which places exist.
        reach: distance that f sees along each dimension, in places, >= 1.
        block: size of a block along each dimension, in places, at least reach.
        tolerance: [B], relative residual at which a sample has converged.
        max_steps: [B] int32, largest number of applications, including those to all places.
        applications: largest number of applications of f in a sweep; fewer if `block` is small.

    Returns:
        `Solution`; a sweep counts as as many steps as it has applications. It carries no gradient.
    """
    solve = _BlockSolve(f, z0, x, mask, reach, block, tolerance, max_steps, applications)
    state, residual = tf.while_loop(
        lambda state, residual: tf.reduce_any(state.active) | tf.reduce_any(residual < 0),
        solve.round,
        [solve.start(z0), tf.fill(tf.shape(tolerance), tf.constant(-1.0, z0.dtype))],
        parallel_iterations=1,
    )
    met = residual <= tf.cast(tolerance, residual.dtype)
    status = tf.where(met, int(Status.CONVERGED), int(Status.MAX_STEPS))
    status = tf.where(state.failed, int(Status.NON_FINITE), status)
    z = tf.ensure_shape(solve.grid.unpadded(state.z), z0.shape)
    return Solution(z, tf.cast(residual, tf.float32), state.spent, status)


class _BlockSolve:
    """One solve by blocks; for the arguments see `solve_by_blocks`."""

    def __init__(self, f, z0, x, mask, reach, block, tolerance, max_steps, applications):
        self._f, self._x, self._mask = f, tf.nest.map_structure(tf.stop_gradient, x), mask
        self._count = min(applications, block // reach)
        self.grid = BlockGrid(z0.shape.rank - 2, tf.shape(z0), block, reach * self._count)
        self._padded_x = tf.nest.map_structure(self.grid.padded, self._x)
        self._inside = self.grid.padded(mask[..., None])
        self._tolerance = tf.cast(tolerance, z0.dtype)
        self._limit = _SHARE * self._tolerance
        # One application is reserved for the check of the whole state.
        self._budget = max_steps - 1

    def start(self, z0: tf.Tensor) -> _Sweeps:
        """The state before the first sweep."""
        batch = tf.shape(self._budget)
        blocks = tf.stack([batch[0], tf.cast(self.grid.count, tf.int32)])
        return _Sweeps(
            self.grid.padded(tf.stop_gradient(z0)),
            tf.ones(blocks, tf.bool),
            tf.zeros(blocks, tf.int64),
            tf.zeros(blocks, tf.int32),
            tf.zeros(batch, tf.int32),
            tf.zeros(batch, tf.bool),
        )

    def round(self, state: _Sweeps, residual: tf.Tensor) -> tuple[_Sweeps, tf.Tensor]:
        """Sweeps until nothing changes, then checks the whole state.

        residual: [B], from the last check; below 0 if there was none.
        """
        active = state.active & (state.spent < self._budget)[:, None]
        looked = tf.reduce_any(active, axis=1) | (residual < 0)
        state = tf.while_loop(
            lambda state: tf.reduce_any(state.active),
            lambda state: (self._sweep(state),),
            [state._replace(active=active)],
            parallel_iterations=1,
        )[0]
        grid, z = self.grid, self.grid.unpadded(state.z)
        image = self._f(z, self._x, self._mask)
        finite = tf.reduce_all(tf.math.is_finite(grid.flat(image)), axis=[1, 2])
        own = _length(grid.flat(image) - grid.flat(z)) / (_length(grid.flat(image)) + _EPSILON)
        own = tf.where(finite, own, own.dtype.max)
        spent = state.spent + tf.where(looked, 1, 0)
        residual = tf.ensure_shape(tf.where(looked, own, residual), residual.shape)
        failed = state.failed | ~finite
        moved, size = (grid.by_block(value) for value in (image - z, image))
        goes_on = ~failed & (residual > self._tolerance) & (spent < self._budget)
        active = (moved > self._limit[:, None] * size) & goes_on[:, None]
        return _like(state._replace(active=active, spent=spent, failed=failed), state), residual

    def _sweep(self, state: _Sweeps) -> _Sweeps:
        """A few applications to the blocks whose turn it is."""
        grid, budget = self.grid, self._budget
        turn = grid.oldest_around(state.active, state.since)
        blocks = tf.where(tf.reshape(turn, [-1]))[:, 0]
        samples = blocks // grid.count
        windows = grid.windows(blocks)
        before, after = self._applied(state.z, windows, tf.gather(budget - state.spent, samples))
        finite = tf.reduce_all(tf.math.is_finite(after), axis=[1, 2])
        after = tf.where(finite[:, None, None], after, before)
        least = (tf.gather(self._limit, samples) * _length(after))[:, None]
        moved = finite[:, None] & (grid.moved(after - before) > least)
        woken = grid.woken(blocks, moved, tf.shape(state.active))
        z = tf.tensor_scatter_nd_update(state.z, grid.interior(windows, True)[..., None], after)
        failed = tf.scatter_nd(
            samples[:, None], tf.cast(~finite, tf.int32), tf.shape(budget, tf.int64)
        )
        failed = state.failed | (failed > 0)
        spent = state.spent + tf.where(tf.reduce_any(state.active, axis=1), self._count, 0)
        spent = tf.minimum(spent, tf.maximum(budget, state.spent))
        active = (state.active & ~turn) | woken
        # A block keeps its turn until it has settled or has had _TURNS sweeps; then it goes to the
        # end.
        turns = tf.where(turn, state.turns + 1, state.turns)
        last = (woken & ~state.active) | (turns >= _TURNS)
        since = tf.where(last, tf.cast(state.spent, tf.int64)[:, None] + 1, state.since)
        active &= (~failed & (spent < budget))[:, None]
        return _like(_Sweeps(z, active, since, tf.where(last, 0, turns), spent, failed), state)

    def _applied(self, z: tf.Tensor, windows: tf.Tensor, left: tf.Tensor) -> tuple:
        """Returns the places of blocks [n, places of a block, d] before and after some applications.

        left: [n], applications that remain in the budget of the block's sample.
        """

        def cut(leaf):
            return self.grid.as_places(tf.gather(leaf, windows))

        x, mask = tf.nest.map_structure(cut, self._padded_x), cut(self._inside)[..., 0]
        before = after = cut(z)
        for number in range(self._count):
            after = choose(left > number, self._f(after, x, mask), after)
        return self.grid.interior(before), self.grid.interior(after)


def _like(new: _Sweeps, old: _Sweeps) -> _Sweeps:
    """Returns the new state with the static shapes of the old one, as tf.while_loop requires."""
    return _Sweeps(
        *(tf.ensure_shape(one, other.shape) for one, other in zip(new, old, strict=True))
    )


def _length(leaf: tf.Tensor) -> tf.Tensor:
    """Returns the Euclidean length, [n, places, d] -> [n]."""
    return tf.sqrt(tf.reduce_sum(leaf**2, axis=[1, 2]))
