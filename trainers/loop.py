"""The training loop that trainers share: compiled steps, reports, checkpoints, resumption."""

import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from tqdm import tqdm

from tfdeq import DEQLayer
from trainers.checkpoints import Checkpoints
from trainers.preemption import Preempted, Preemption
from trainers.workdir import Curves


class Task(NamedTuple):
    """What a trainer tells the loop."""

    model: keras.Model
    # (model, batch, explicit_steps, max_steps) -> [] float32 loss of a batch, in nats per prediction;
    # max_steps is a [] int32 tensor, the solver's budget in this step
    loss: Callable[[keras.Model, Any, int, tf.Tensor], tf.Tensor]
    # start_step -> iterator of batches, from that step on
    batches: Callable[[int], Any]
    # () -> {name: number} on held-out data
    evaluate: Callable[[], dict[str, float]]
    # {"loss": nats, …} -> what the progress bar shows, name -> number
    display: Callable[[Mapping[str, float]], dict[str, float]]
    tokens_per_step: int
    # the layers whose convergence the curves show
    equilibria: Sequence[DEQLayer]
    # () -> {name: number} of the model as it is, for a run that diverged; or None
    diagnose: Callable[[], dict[str, float]] | None = None


def explicit_steps_at(step: int, config: Mapping[str, Any]) -> int:
    """Returns how many explicit applications train at a step: 0 is the equilibrium."""
    if config["depth"]:
        return config["depth"]
    shallow = step < round(config["shallow_share"] * config["train_steps"])
    return config["shallow_steps"] if shallow else 0


def max_steps_at(step: int, config: Mapping[str, Any]) -> int:
    """Returns the forward solver's budget at a step.

    It grows evenly, from training_max_steps when the equilibrium takes over to max_steps at the end:
    a rough equilibrium teaches as much and costs less, but a model that only ever sees rough ones
    comes to rely on them.
    """
    first = round(config["shallow_share"] * config["train_steps"])
    share = max(step - first, 0) / max(config["train_steps"] - first, 1)
    low, high = config["training_max_steps"], config["max_steps"]
    return low if high <= low else low + int(share * (high - low + 1))


def penalty_share_at(step: int, config: Mapping[str, Any]) -> float:
    """Returns the share of the Jacobian penalty's weight that holds at a step.

    It falls evenly from 1 to jacobian_penalty_end: drift is a danger while the learning rate is high.
    """
    return 1.0 - (1.0 - config["jacobian_penalty_end"]) * step / config["train_steps"]


class Trainer:
    """Trains a `Task` for config["train_steps"] steps, from where the workdir's checkpoint ends.

    Args:
        task: model, loss, data, evaluation.
        config: the shared flags' values.
        workdir: receives checkpoints/, tensorboard/ and curves.jsonl.
        optimizer: Keras optimizer.
        learning_rate_scale: what its learning rate is multiplied by; halved when a run that diverged
            returns to its last checkpoint.
    """

    def __init__(
        self,
        task: Task,
        config: Mapping[str, Any],
        workdir: str,
        optimizer: keras.optimizers.Optimizer,
        learning_rate_scale: tf.Variable,
    ):
        self._task = task
        self._config = config
        self._optimizer = optimizer
        self._loss = keras.metrics.Mean(name="loss")
        self._gradient_norm = keras.metrics.Mean(name="gradient_norm")
        self._skipped = keras.metrics.Sum(name="skipped")
        self._step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        self._seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False, name="seconds")
        optimizer.build(task.model.trainable_variables)
        self._learning_rate_scale = learning_rate_scale
        self._consecutive = tf.Variable(0, trainable=False, name="consecutive")
        self._rollbacks = tf.Variable(0, trainable=False, name="rollbacks")
        self._all_skipped = tf.Variable(0, trainable=False, name="all_skipped")
        self._best = tf.Variable(math.inf, dtype=tf.float64, trainable=False, name="best")
        saved = {
            "model": task.model,
            # Seeds and moving statistics: Keras's seed generators are not found through the model.
            "state": list(task.model.non_trainable_variables),
            "optimizer": optimizer,
            "step": self._step,
            "seconds": self._seconds,
            "learning_rate_scale": self._learning_rate_scale,
            "rollbacks": self._rollbacks,
            "all_skipped": self._all_skipped,
            "consecutive": self._consecutive,
            # A row of the curves may span the interruption.
            "metrics": [
                variable
                for metric in (self._loss, self._gradient_norm, self._skipped)
                for variable in metric.variables
            ],
            "convergence": [
                variable for layer in task.equilibria for variable in layer.metrics_variables
            ],
            "best": self._best,
        }
        folder = os.path.join(workdir, "checkpoints")
        self._checkpoints = Checkpoints(folder, **saved)
        self._best_checkpoint = Checkpoints(os.path.join(folder, "best"), keep=1, **saved)
        self._saved_at = time.monotonic()
        self._curves = Curves(os.path.join(workdir, "curves.jsonl"))
        self._writer = tf.summary.create_file_writer(os.path.join(workdir, "tensorboard"))
        self._compiled: dict[int, Callable[[Any], None]] = {}

    def train(self) -> dict[str, Any]:
        """Trains to the end and returns the curves, as columns, with `seconds_per_step`.

        Beside the columns: `all_skipped_steps`, `rollbacks` (returns to a checkpoint), and `best`, the
        lowest held-out score and its step.

        Raises:
            FloatingPointError: if the loss or its gradient was NaN or Inf in too many steps in a row
                (divergence_patience) once more than max_rollbacks times; the last checkpoint from
                before stays.
            Preempted: after SIGTERM; a checkpoint of the last step was written.
        """
        self._checkpoints.restore()
        # Also without a checkpoint: a run that was killed before its first one left rows.
        self._curves.rewind(int(self._step))
        last = self._config["train_steps"]
        # A terminal shows the bar as it moves; a file receives a line now and then.
        interval = 0.5 if sys.stderr.isatty() else 30.0
        with (
            Preemption() as preemption,
            tqdm(
                initial=int(self._step),
                total=last,
                unit="step",
                dynamic_ncols=True,
                mininterval=interval,
            ) as bar,
        ):
            # Again after each return to a checkpoint.
            while int(self._step) < last:
                self._train_from(int(self._step), last, bar, preemption)
        columns = self._curves.columns()
        columns["seconds_per_step"] = float(self._seconds) / max(last, 1)
        columns["all_skipped_steps"] = int(self._all_skipped)
        columns["rollbacks"] = int(self._rollbacks)
        columns["best"] = self._best_row()
        return columns

    def _train_from(self, first: int, last: int, bar: tqdm, preemption: Preemption) -> None:
        """Trains from a step to the last one, or until the run returned to a checkpoint."""
        batches = iter(self._task.batches(first))
        since, started = first, time.perf_counter()
        for step in range(first + 1, last + 1):
            new_graph = self.run_step(
                next(batches),
                explicit_steps_at(step - 1, self._config),
                max_steps_at(step - 1, self._config),
                penalty_share_at(step - 1, self._config),
            )
            if new_graph:
                # Compilation is no part of a step's time.
                since, started = step, time.perf_counter()
            bar.update()
            if step % self._config["log_every"] == 0 or step == last:
                elapsed = self._report(bar, step, since, started)
                self._seconds.assign_add(elapsed)
                if self._has_diverged(step == last):
                    self._roll_back(step)
                    bar.n = int(self._step)
                    return
                self._maybe_evaluate(step)
                since, started = step, time.perf_counter()
            if self._is_due(step, last, preemption.asked):
                self._save(step, required=step == last or preemption.asked)
                since, started = step, time.perf_counter()
            if preemption.asked and step < last:
                bar.write(f"Asked to end at step {step}; the same command goes on from there.")
                raise Preempted(step)

    def _is_due(self, step: int, last: int, asked: bool) -> bool:
        """Whether a checkpoint is to be written after a step."""
        minutes = self._config["checkpoint_minutes"]
        waited = minutes and time.monotonic() - self._saved_at >= 60.0 * minutes
        return bool(step % self._config["checkpoint_every"] == 0 or step == last or asked or waited)

    def _save(self, step: int, required: bool = False) -> None:
        """Writes a checkpoint, unless the steps before it went wrong: the last good one stays."""
        if int(self._consecutive) and not (required and self._weights_are_finite()):
            return
        self._step.assign(step)
        self._checkpoints.save(step)
        self._saved_at = time.monotonic()

    def _weights_are_finite(self) -> bool:
        return all(
            bool(tf.reduce_all(tf.math.is_finite(variable)))
            for variable in self._task.model.trainable_variables
        )

    def _has_diverged(self, at_end: bool) -> bool:
        """Whether too many steps in a row were skipped, or the last one would leave NaN behind."""
        consecutive = int(self._consecutive)
        if consecutive >= self._config["divergence_patience"]:
            return True
        return bool(at_end and consecutive and not self._weights_are_finite())

    def _roll_back(self, step: int) -> None:
        """Returns to the last checkpoint with half the learning rate; raises when that was done enough."""
        consecutive, skipped = int(self._consecutive), int(self._all_skipped)
        rollbacks, scale = int(self._rollbacks) + 1, 0.5 * float(self._learning_rate_scale)
        found = f"The loss or its gradient was NaN or Inf in each of the last {consecutive} steps, up to "
        found += f"step {step}. {self._last_words()}"
        if rollbacks > self._config["max_rollbacks"] or not self._checkpoints.restore():
            raise FloatingPointError(
                f"{found} The last checkpoint from before is kept. Look at the data of these steps, lower "
                "--learning_rate or raise --jacobian_penalty, and start in a new --workdir."
            )
        self._consecutive.assign(0)
        self._all_skipped.assign(skipped)
        self._rollbacks.assign(rollbacks)
        self._learning_rate_scale.assign(scale)
        self._curves.rewind(int(self._step))
        tqdm.write(
            f"{found} Going on from step {int(self._step)} with {scale:g} of the learning rate "
            f"(return {rollbacks} of at most {self._config['max_rollbacks']})."
        )

    def _last_words(self) -> str:
        """What the last row with a finite loss said, and the task's own look at the model."""
        names = ("gradient_norm", "residual", "backward_residual", "learning_rate")
        rows = [row for row in self._curves.rows if row.get("loss") is not None]
        known = next((row for row in reversed(rows) if not row["skipped_steps"]), None)
        if known is None:
            return "No step before was finite."
        numbers = {name: known[name] for name in names if known.get(name) is not None}
        numbers.update(self._task.diagnose() if self._task.diagnose else {})
        text = ", ".join(f"{name} {value:.3g}" for name, value in numbers.items())
        return f"The last finite report, at step {known['step']}: {text}."

    @property
    def optimizer(self) -> keras.optimizers.Optimizer:
        """The optimiser, built."""
        return self._optimizer

    def first_batch(self) -> Any:
        """The batch of the first step."""
        return next(iter(self._task.batches(0)))

    @property
    def writer(self) -> tf.summary.SummaryWriter:
        """The TensorBoard writer of the run."""
        return self._writer

    def run_step(
        self, batch: Any, explicit_steps: int, max_steps: int, penalty_share: float = 1.0
    ) -> bool:
        """Makes one step, and returns whether its graph had to be compiled first.

        penalty_share: what the model's own losses, the Jacobian penalty, are multiplied by.
        """
        new = explicit_steps not in self._compiled
        if new:
            self._compiled[explicit_steps] = tf.function(
                lambda batch, *scalars: self._train_step(batch, explicit_steps, *scalars),
                jit_compile=self._config["jit_compile"],
                autograph=False,
            )
        self._compiled[explicit_steps](batch, tf.constant(max_steps), tf.constant(penalty_share))
        return new

    def wait(self) -> None:
        """Returns when every step made so far is done."""
        self._loss.result().numpy()

    def _train_step(
        self, batch: Any, explicit_steps: int, max_steps: tf.Tensor, penalty_share: tf.Tensor
    ) -> None:
        variables = self._task.model.trainable_variables
        loss, total, gradients = self._accumulated(batch, explicit_steps, max_steps, penalty_share)
        norm = tf.linalg.global_norm(gradients)
        finite = tf.math.is_finite(norm) & tf.math.is_finite(total)

        def update():
            self._optimizer.apply(gradients, variables)
            return tf.constant(True)

        # A step that is not finite changes nothing: neither weights nor the optimiser's state.
        tf.cond(finite, update, lambda: tf.constant(False))
        self._consecutive.assign(tf.where(finite, 0, self._consecutive + 1))
        self._all_skipped.assign_add(tf.where(finite, 0, 1))
        weight = tf.cast(finite, tf.float32)
        self._loss.update_state(tf.where(finite, loss, 0.0), weight)
        self._gradient_norm.update_state(tf.where(finite, norm, 0.0), weight)
        self._skipped.update_state(1.0 - weight)

    def _accumulated(
        self, batch: Any, explicit_steps: int, max_steps: tf.Tensor, penalty_share: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """Loss, loss with penalties, and gradients: means over the parts of a batch, one at a time."""

        def of_part(part):
            loss, total, gradients = self._gradients(part, explicit_steps, max_steps, penalty_share)
            # An embedding's gradient comes as slices, which a loop cannot add up.
            return [loss, total, *(tf.convert_to_tensor(gradient) for gradient in gradients)]

        count = self._config["accumulation_steps"]
        if count == 1:
            return self._gradients(batch, explicit_steps, max_steps, penalty_share)
        parts = tf.nest.map_structure(
            lambda leaf: tf.reshape(leaf, [count, leaf.shape[0] // count, *leaf.shape[1:]]), batch
        )

        def body(index, sums):
            found = of_part(tf.nest.map_structure(lambda leaf: leaf[index], parts))
            return index + 1, [sum_ + part / count for sum_, part in zip(sums, found, strict=True)]

        zeros = [tf.zeros(()), tf.zeros(())]
        zeros += [tf.zeros_like(v.value) for v in self._task.model.trainable_variables]
        _, (loss, total, *gradients) = tf.while_loop(
            lambda index, _: index < count, body, [tf.constant(0), zeros], parallel_iterations=1
        )
        return loss, total, gradients

    def _gradients(
        self, batch: Any, explicit_steps: int, max_steps: tf.Tensor, penalty_share: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            loss = self._task.loss(self._task.model, batch, explicit_steps, max_steps)
            penalties = [penalty_share * penalty for penalty in self._task.model.losses]
            total = tf.add_n([loss, *penalties])
        return loss, total, tape.gradient(total, self._task.model.trainable_variables)

    def _report(self, bar: tqdm, step: int, since: int, started: float) -> float:
        """Writes one row of the curves; returns seconds for the steps since the last report."""
        rows = [row["step"] for row in self._curves.rows if "loss" in row]
        previous = rows[-1] if rows else 0
        skipped = int(self._skipped.result())
        # Waits for the device. Of skipped steps alone there is no mean.
        loss = float(self._loss.result()) if float(self._loss.count) else None
        per_step = (time.perf_counter() - started) / max(step - since, 1)
        row = {
            "step": step,
            "loss": loss,
            "gradient_norm": float(self._gradient_norm.result()),
            "learning_rate": float(self._optimizer.learning_rate),
            "skipped_steps": skipped,
            "rollbacks": int(self._rollbacks),
            "explicit_steps": explicit_steps_at(step - 1, self._config),
            "seconds_per_step": per_step if step > since else None,
            "tokens_per_second": self._task.tokens_per_step / per_step if step > since else None,
        }
        for layer in self._task.equilibria:
            row.update(layer.convergence_report())
        for metric in (self._loss, self._gradient_norm, self._skipped):
            metric.reset_state()
        self._curves.append(row)
        with self._writer.as_default(step=step):
            display = {} if loss is None else self._task.display(row)
            for name, value in {**row, **display}.items():
                if value is not None and name != "step":
                    tf.summary.scalar(f"train/{name}", value)
        shown = {**display, "residual": row.get("residual"), "steps": row.get("steps"),
                 "tokens/s": row["tokens_per_second"]}  # fmt: skip
        bar.set_postfix({k: f"{v:.3g}" for k, v in shown.items() if v is not None}, refresh=False)
        # Steps whose time was not taken (they follow a compilation) count as the others.
        return per_step * (step - previous) if step > since else 0.0

    def _best_row(self) -> dict[str, float] | None:
        """The lowest held-out score and the step that it was reached at."""
        rows = []
        for row in self._curves.rows:
            scores = [value for name, value in row.items() if name.startswith("held_out_")]
            if scores and scores[0] is not None:
                rows.append({"step": row["step"], "score": scores[0]})
        return min(rows, key=lambda row: row["score"], default=None)

    def _maybe_evaluate(self, step: int) -> None:
        if step % self._config["evaluate_every"] and step != self._config["train_steps"]:
            return
        results = self._task.evaluate()
        score = next(iter(results.values()), math.inf)
        if score < float(self._best) and not int(self._consecutive):
            self._best.assign(score)
            self._step.assign(step)
            self._best_checkpoint.save(step)
        self._curves.append({"step": step, **{f"held_out_{k}": v for k, v in results.items()}})
        with self._writer.as_default(step=step):
            for name, value in results.items():
                tf.summary.scalar(f"held_out/{name}", value)
        text = ", ".join(f"{name} {value:.4g}" for name, value in results.items())
        tqdm.write(f"step {step}: held-out {text}")
