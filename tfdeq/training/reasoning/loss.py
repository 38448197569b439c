"""The training loss of models that solve puzzles."""

from typing import Any, ClassVar

import tensorflow as tf

from tfdeq.models import Reasoner
from tfdeq.runs.measures import CROSS_ENTROPY, per_example
from tfdeq.training.reasoning.evaluation import PuzzleRows, exact, places
from tfdeq.training.reasoning.progressive import progressive_state
from tfdeq.training.reasoning.segments import Segments
from tfdeq.training.task import CallSettings, Loss

_nats = per_example(CROSS_ENTROPY)
_EPSILON = 1e-6


class PuzzleLoss:
    """Nats per place of the answer, plus the settling penalty.

    Let z be the final state of a solve. The penalty is the mean over all places p of ‖f(z)_p − z_p‖ /
    ‖f(z)_p‖. Since it sums lengths, not squares, it is small if a few places move far, as when an
    answer travels, and large if all places move a little. So places that the answer has passed settle,
    and places ahead of it wait. The denominator gets no gradient.

    Args:
        model: the model.
        settling_penalty: weight of the penalty, >= 0; 0: none.
        progressive: weight in [0, 1] of the nats of `progressive_state`; those of the solve have the
            weight 1 − progressive. With 1 there is no solve. 0: none.
        most: largest number of evaluations in a training step, if progressive is used.
        segments: segments of deep supervision, or None. Not together with progressive.

    Source: sums of lengths as a penalty that favours few nonzero terms: Yuan and Lin, Model Selection
        and Estimation in Regression with Grouped Variables, 2006, equation (2.1).
    """

    MEASURES: ClassVar[tuple[str, ...]] = ("exact", "places", "moved")

    def __init__(
        self,
        model: Reasoner,
        settling_penalty: float,
        progressive: float = 0.0,
        most: int = 0,
        segments: Segments | None = None,
    ):
        self._model, self._rows = model, PuzzleRows(model)
        self._settling_penalty = settling_penalty
        self._progressive, self._most = progressive, most
        self._segments = segments

    def __call__(self, batch: Any, settings: CallSettings, carried: Any) -> Loss:
        """Returns the loss of a batch (inputs, targets)."""
        inputs, targets = batch
        z0 = None
        if self._segments is not None:
            carried = self._segments.begin(batch, carried, settings.training)
            inputs, targets, z0 = carried.inputs, carried.targets, carried.z
        share = self._progressive if settings.training and not settings.explicit_steps else 0.0
        loss = 0.0
        if share:
            z = progressive_state(self._model, inputs, settings.max_steps, self._most)
            logits = self._model.read(z)
            loss += share * tf.reduce_mean(_nats(targets, logits))
        if share < 1:
            logits, solution = self._rows.solved(inputs, settings, z0)
            loss += (1 - share) * tf.reduce_mean(_nats(targets, logits))
            z = solution.z
            if self._segments is not None:
                carried = self._segments.end(carried, logits, solution)
        moved = tf.reduce_mean(self._moved(z, inputs))
        measures = {
            "exact": tf.reduce_mean(exact(targets, logits)),
            "places": tf.reduce_mean(places(targets, logits)),
            "moved": moved,
        }
        return Loss(loss + self._settling_penalty * moved, carried, measures)

    def _moved(self, z: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
        """[B, places] float32: how far each place moves in one more application."""
        if not self._settling_penalty:
            z = tf.stop_gradient(z)
        image = self._model.applied(z, inputs)
        # The square root has no derivative at 0.
        change = tf.sqrt(tf.reduce_sum((image - z) ** 2, axis=-1) + _EPSILON**2)
        size = tf.sqrt(tf.reduce_sum(image**2, axis=-1) + _EPSILON)
        moved = change / tf.stop_gradient(size)
        return moved if self._settling_penalty else tf.stop_gradient(moved)
