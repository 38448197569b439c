"""Cost follows the work: samples that are done leave the batch, the rest go on alone."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfdeq.rows import scattered, take_rows
from tfdeq.solvers.splitting import Splitting


class RowwiseFunction:
    """f(z, *args) that knows which of its args belong to the samples, row by row.

    Args:
        f: (z, *args) -> like z.
        batched_args: positions in args of nests with leaves [B, ...], or [1, ...] for what all samples
            share.
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
    """z -> f(z, *args) without gradient to args, which can be restricted to some rows of the batch.

    Args:
        f: (z, *args) -> like z; a `RowwiseFunction` has rows.
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
        """Whether `rows` is to be called."""
        return bool(self._batched) and self._f.compaction

    def rows(self, indices: tf.Tensor) -> "BoundFunction":
        """Returns the same function for the samples that indices [n] int32 name."""
        args = list(self._args)
        for position in self._batched:
            args[position] = take_rows(args[position], indices)
        return BoundFunction(self._f, args)


def splitting_of(f: Callable[..., Any], args: Sequence[Any]) -> Splitting | None:
    """Returns what a function says of its parts for these args; None: nothing."""
    return f.splitting(*args) if hasattr(f, "splitting") else None


def run_compacting(
    run: Callable[[Callable[[Any], Any], Any], Any],
    f: BoundFunction,
    carried: Any,
    is_running: Callable[[Any], tf.Tensor],
    results: Callable[[Any], Any],
) -> Any:
    """Runs a loop over a batch that shrinks, and returns the results of all samples.

    Whenever at most half of the rows are still running, those are gathered and go on alone, so that
    the work is about the sum of the samples' own, and at most twice that.

    Args:
        run: (f, carried) -> carried, the loop until at most half of the rows are running.
        f: the function for all samples.
        carried: nest of the loop's [B, ...] tensors, and of scalars that all samples share.
        is_running: carried -> [n] bool.
        results: carried -> nest of [n, ...] tensors that are wanted at the end.
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
        lambda indices, *_: tf.size(indices) > 0,
        body,
        [indices, carried, collected],
        shape_invariants=invariants,
        parallel_iterations=1,
    )
    return collected


def _any_batch(leaf: tf.Tensor) -> tf.TensorShape:
    return leaf.shape if leaf.shape.rank == 0 else tf.TensorShape([None, *leaf.shape[1:]])
