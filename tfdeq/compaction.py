"""Compaction: samples that are done leave the batch, so that they cost no further evaluations."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfdeq.rows import scattered, take_rows
from tfdeq.solvers.splitting import Splitting


class RowwiseFunction:
    """f(z, *args) that knows which of its args have a row for each sample.

    Args:
        f: (z, *args) -> like z.
        batched_args: positions in args of nests with leaves [B, ...], or [1, ...] for values that
            all samples share.
        compaction: whether samples that are done leave the batch.
    """

    def __init__(self, f: Callable[..., Any], batched_args: Sequence[int], compaction: bool = True):
        self._f = f
        self.batched_args = tuple(batched_args)
        self.compaction = compaction

    def __call__(self, z: Any, *args: Any) -> Any:
        return self._f(z, *args)

    def splitting(self, *args: Any) -> Splitting | None:
        """Returns what f says of its parts; None: nothing."""
        return splitting_of(self._f, args)


class BoundFunction:
    """z -> f(z, *args) without a gradient to args; it can be restricted to some rows of the batch.

    Args:
        f: (z, *args) -> like z. Only a `RowwiseFunction` can be restricted to rows.
        args: tuple of nests of tensors.
    """

    def __init__(self, f: Callable[..., Any], args: Any):
        self._f = f
        self._args = tf.nest.map_structure(tf.stop_gradient, tuple(args))
        self._batched = f.batched_args if isinstance(f, RowwiseFunction) else ()

    def __call__(self, z: Any) -> Any:
        return self._f(z, *self._args)

    def splitting(self) -> Splitting | None:
        """Returns what f says of its parts; None: nothing."""
        return splitting_of(self._f, self._args)

    @property
    def compacts(self) -> bool:
        """Whether the loop should use `rows` to shrink the batch."""
        return bool(self._batched) and self._f.compaction

    def rows(self, indices: tf.Tensor) -> "BoundFunction":
        """Returns the same function for the samples with the given indices, [n] int32."""
        args = list(self._args)
        for position in self._batched:
            args[position] = take_rows(args[position], indices)
        return BoundFunction(self._f, args)


def splitting_of(f: Callable[..., Any], args: Sequence[Any]) -> Splitting | None:
    """Returns the splitting that f declares for these args; None if it declares none."""
    return f.splitting(*args) if hasattr(f, "splitting") else None


def run_compacting(
    run: Callable[[Callable[[Any], Any], Any], Any],
    f: BoundFunction,
    carried: Any,
    is_running: Callable[[Any], tf.Tensor],
    results: Callable[[Any], Any],
) -> Any:
    """Runs a loop over a batch that shrinks, and returns the results of all samples.

    Whenever at most half of the rows are still running, these are gathered into a smaller batch.
    The work is then about the sum of the samples' own work, and at most twice that.

    Args:
        run: (f, carried) -> carried, runs the loop until at most half of the rows are running.
        f: the function for all samples.
        carried: nest of the loop's [B, ...] tensors, and of scalars that all samples share.
        is_running: carried -> [n] bool.
        results: carried -> nest of [n, ...] tensors to return at the end.
    """
    batch = tf.shape(is_running(carried))[0]
    indices = tf.range(batch)
    collected = results(carried)

    def body(indices, carried, collected):
        end = run(f.rows(indices), carried)
        collected = tf.nest.map_structure(
            lambda whole, part: scattered(whole, indices[:, None], part),
            collected,
            results(end),
        )
        keep = tf.where(is_running(end))[:, 0]
        smaller = tf.nest.map_structure(
            lambda leaf: leaf if leaf.shape.rank == 0 else tf.gather(leaf, keep), end
        )
        return [tf.gather(indices, keep), smaller, collected]

    invariants = [
        tf.TensorShape([None]),
        tf.nest.map_structure(_any_batch, carried),
        tf.nest.map_structure(lambda leaf: leaf.shape, collected),
    ]
    _, _, collected = tf.while_loop(
        lambda _, carried, *__: tf.reduce_any(is_running(carried)),
        body,
        [indices, carried, collected],
        shape_invariants=invariants,
        parallel_iterations=1,
    )
    return collected


def _any_batch(leaf: tf.Tensor) -> tf.TensorShape:
    return leaf.shape if leaf.shape.rank == 0 else tf.TensorShape([None, *leaf.shape[1:]])
