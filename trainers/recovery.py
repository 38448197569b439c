"""What becomes of a run whose steps go wrong one after the other: back to a good checkpoint, or the end."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from trainers.progress import Progress
from trainers.run_state import RunState
from trainers.training_step import TrainingStep


class Recovery:
    """Judges whether a run has diverged, and takes it back.

    Args:
        config: divergence_patience and max_rollbacks.
        model: the model.
        step: what counts the steps that were not finite.
        state: what holds the checkpoints.
        progress: what shows the run.
        learning_rate_scale: halved at each return.
        look: (step) -> {name: number} of the model as it is, for the diagnosis.
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

    def may_save(self, required: bool) -> bool:
        """Whether a checkpoint may be written now: not after steps that went wrong.

        required: at the end a run whose last steps were skipped saves, if its weights are finite.
        """
        return not self._consecutive() or (required and self.weights_are_finite())

    def weights_are_finite(self) -> bool:
        """Whether no weight is NaN or Inf."""
        return all(
            bool(tf.reduce_all(tf.math.is_finite(tf.convert_to_tensor(variable))))
            for variable in self._model.trainable_variables
        )

    def has_diverged(self, at_end: bool) -> bool:
        """Whether too many steps in a row were skipped, or the last one would leave NaN behind."""
        consecutive = self._consecutive()
        if consecutive >= self._config["divergence_patience"]:
            return True
        return bool(at_end and consecutive and not self.weights_are_finite())

    def roll_back(self, step: int) -> None:
        """Returns to the last checkpoint with half the learning rate.

        Raises:
            FloatingPointError: with a diagnosis, if that was done max_rollbacks times already, or
                there is no checkpoint.
        """
        consecutive, skipped = self._consecutive(), int(self._step.skipped.numpy())
        scale = 0.5 * float(self._learning_rate_scale)
        found = f"The loss or its gradient was NaN or Inf in each of the last {consecutive} steps, up to "
        found += f"step {step}. {self._last_words()}"
        if not self._state.roll_back():
            raise FloatingPointError(
                f"{found} The last checkpoint from before is kept. Look at the data of these steps, lower "
                "--learning_rate or raise --jacobian_penalty, and start in a new --workdir."
            )
        self._step.consecutive.assign(0)
        self._step.skipped.assign(skipped)
        self._learning_rate_scale.assign(scale)
        restored = int(self._state.step)
        self._progress.curves.rewind(restored)
        self._progress.move_to(restored)
        self._progress.say(
            f"{found} Going on from step {restored} with {scale:g} of the learning rate "
            f"(return {int(self._state.rollbacks)} of at most {self._config['max_rollbacks']})."
        )

    def _consecutive(self) -> int:
        return int(self._step.consecutive.numpy())

    def _last_words(self) -> str:
        """What the last row with a finite loss said, and a look at the model as it is."""
        names = ("gradient_norm", "residual", "backward_residual", "learning_rate")
        known = self._progress.last_finite_row()
        if known is None:
            return "No step before was finite."
        numbers = {name: known[name] for name in names if known.get(name) is not None}
        numbers.update(self._look(int(known["step"])))
        text = ", ".join(f"{name} {value:.3g}" for name, value in numbers.items())
        return f"The last finite report, at step {known['step']}: {text}."
