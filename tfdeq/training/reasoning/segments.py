"""Deep supervision: puzzles stay in the batch, with their states, for several training steps."""

from typing import Any, NamedTuple

import tensorflow as tf

from tfdeq import Solution
from tfdeq.models import Reasoner
from tfdeq.training.reasoning.evaluation import exact

# The conditions under which a puzzle leaves before its last segment.
HALTING = ("none", "exact", "settled")


class Carried(NamedTuple):
    """The state that a training step passes on to the next one."""

    inputs: tf.Tensor  # [B, places] int32
    targets: tf.Tensor  # [B, places] int32
    z: tf.Tensor  # [B, places, width] float32, start of the next segment
    segment: tf.Tensor  # [B] int32, segments made so far; 0 or less: a new puzzle follows


class Segments:
    """Keeps a row's puzzle for several training steps, each of which starts from the last state.

    No gradient passes from one step to the next. When its puzzle leaves, a row takes the puzzle at its
    place in the step's batch; the other puzzles in the batch are not used.

    Args:
        model: the model.
        count: largest number of segments of a puzzle, >= 1.
        halting: "exact": a puzzle leaves as soon as its answer is correct at every place, which a
            learned halting signal would be trained to predict; "settled": as soon as its solve meets
            the tolerance; "none": only after its last segment.

    Source: Wang et al., Hierarchical Reasoning Model, arXiv:2506.21734, section 2 (deep supervision,
        adaptive computation).
    """

    def __init__(self, model: Reasoner, count: int, halting: str = "none"):
        if halting not in HALTING:
            raise ValueError(f"halting must be one of {', '.join(HALTING)}; received {halting!r}.")
        self._model, self._count, self._halting = model, count, halting

    def initial(self, rows: int) -> Carried:
        """Returns the state for the first step.

        The first puzzles of the rows have 1 … count segments, so that not all rows change their puzzles
        at the same time.
        """
        shape = (rows, *self._model.input_places)
        nothing = tf.zeros(shape, tf.int32)
        z = tf.zeros((*shape, self._model.cell.width))
        return Carried(nothing, nothing, z, -(tf.range(rows) % self._count))

    def begin(self, batch: Any, carried: Carried, training: bool) -> Carried:
        """Returns the puzzles of this step and the starts of their solves."""
        inputs, targets = (tf.cast(part, tf.int32) for part in batch)
        new = carried.segment <= 0
        inputs, targets = _where(new, inputs, carried.inputs), _where(new, targets, carried.targets)
        x, _ = self._model.embed(inputs)
        start = tf.cast(self._model.start(x, training), tf.float32)
        return Carried(inputs, targets, _where(new, start, carried.z), carried.segment)

    def end(self, begun: Carried, logits: tf.Tensor, solution: Solution) -> Carried:
        """Returns the state for the next step."""
        made = tf.abs(begun.segment) + 1
        done = made >= self._count
        if self._halting == "exact":
            done |= exact(begun.targets, logits) > 0
        elif self._halting == "settled":
            done |= solution.converged
        z = tf.stop_gradient(tf.cast(solution.z, tf.float32))
        return begun._replace(z=z, segment=tf.where(done, 0, made))


def _where(rows: tf.Tensor, one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.reshape(rows, [-1, *[1] * (len(one.shape) - 1)]), one, other)
