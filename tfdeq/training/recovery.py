"""Handling of a run whose consecutive steps go wrong: it returns to a good checkpoint, or ends."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfdeq.training.records.progress import Progress
from tfdeq.training.records.run_state import RunState
from tfdeq.training.steps.training_step import TrainingStep


class Recovery:
    """Decides whether a run has diverged, and returns it to a good checkpoint.

    Args:
        config: divergence_patience and max_rollbacks.
        model: the model.
        step: the training step, which counts the steps that went wrong.
        state: has the checkpoints.
        progress: shows the run.
        learning_rate_scale: halved at each return.
        look: (step) -> {name: number} for the current model, for the diagnosis.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        model: keras.Model,
        step: TrainingStep,
        state: RunState,
        progress: Progress,
        learning_rate_scale: tf.Variable,
        look: Callable[[int], dict[str, float]],
    ):
        self._config = config
        self._model = model
        self._step = step
        self._state = state
        self._progress = progress
        self._learning_rate_scale = learning_rate_scale
        self._look = look
        self._divergence = step.divergence
        self._looked = 0  # the step of the last check

    def may_save(self, required: bool) -> bool:
        """Whether a checkpoint may be written now, which is not the case after steps that went wrong.

        required: at its end, a run whose last steps were skipped saves if its weights are finite.
        """
        if not self._count(self._divergence.consecutive):
            return True
        # Steps with too high a loss were applied, and no checkpoint should contain their result.
        high = self._count(self._divergence.high)
        return required and not high and self.weights_are_finite()

    def weights_are_finite(self) -> bool:
        """Whether all weights are finite."""
        return all(
            bool(tf.reduce_all(tf.math.is_finite(tf.convert_to_tensor(variable))))
            for variable in self._model.trainable_variables
        )

    def is_due(self, step: int) -> bool:
        """Whether a check is due after a step; depends only on the step, so that all workers agree."""
        every = ("log_every", "evaluate_every", "checkpoint_every")
        due = any(step % self._config[name] == 0 for name in every)
        waited = step - self._looked >= self._config["divergence_patience"]
        if not (due or waited or step == self._config["train_steps"]):
            return False
        self._looked = step
        return True

    def has_diverged(self, at_end: bool) -> bool:
        """Whether too many consecutive steps went wrong, or the last ones would leave a bad model."""
        if self._divergence.has_diverged():
            return True
        return at_end and not self.may_save(required=True)

    def roll_back(self, step: int) -> None:
        """Returns to the last good checkpoint with half the learning rate.

        Raises:
            FloatingPointError: with a diagnosis, if this was already done max_rollbacks times, or there
                is no checkpoint.
        """
        consecutive, skipped = (
            self._count(self._divergence.consecutive),
            self._count(self._step.skipped),
        )
        scale = 0.5 * float(self._learning_rate_scale)
        found = f"{self._divergence.described()} in each of the last {consecutive} steps, up to "
        found += f"step {step}. {self._last_words()}"
        # The first loss that was too high belongs to the weights before that step.
        first = step - consecutive if self._count(self._divergence.high) else None
        if not self._state.roll_back(before=first):
            raise FloatingPointError(
                f"{found} {self._state.what_is_there()} Check the data of these steps, lower "
                "--learning_rate or raise --jacobian_penalty, and start again in a new --workdir."
            )
        self._divergence.reset()
        self._step.skipped.assign(skipped)
        self._learning_rate_scale.assign(scale)
        restored = int(self._state.step)
        self._looked = restored
        self._progress.rewind(restored)
        self._progress.move_to(restored)
        self._progress.say(
            f"{found} Going on from step {restored} with {scale:g} of the learning rate "
            f"(return {int(self._state.rollbacks)} of at most {self._config['max_rollbacks']})."
        )

    @staticmethod
    def _count(variable: tf.Variable) -> int:
        return int(variable.numpy())

    def _last_words(self) -> str:
        """Returns the last row with a finite loss, and figures of the current model, in words."""
        names = ("gradient_norm", "loss", "residual", "backward_residual", "learning_rate")
        known = self._progress.last_finite_row()
        if known is None:
            return "No report before was of finite steps alone."
        numbers = {name: known[name] for name in names if known.get(name) is not None}
        numbers.update(self._look(int(known["step"])))
        text = ", ".join(f"{name} {value:.3g}" for name, value in numbers.items())
        return f"The last finite report, at step {known['step']}: {text}."
