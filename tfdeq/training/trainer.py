"""The training loop that trainers share: steps, reports, checkpoints, resumption."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import keras
import tensorflow as tf

from tfdeq.programs.preemption import Preempted, noted_requests
from tfdeq.training.devices.agreement import Agreement
from tfdeq.training.devices.process_memory import peak_resident_bytes
from tfdeq.training.devices.strategies import check_batch_size, distribute
from tfdeq.training.equilibrium_watch import EquilibriumWatch
from tfdeq.training.inspection import Inspection, write_histograms
from tfdeq.training.records.profiler import Profiler
from tfdeq.training.records.progress import Clock, Progress
from tfdeq.training.records.run_state import RunState
from tfdeq.training.recovery import Recovery
from tfdeq.training.schedule import StepSettings, settings_at, takeover_step
from tfdeq.training.steps.averages import averaged_weights, take_averages
from tfdeq.training.steps.training_step import TrainingStep
from tfdeq.training.task import Task

# In a row of the curves, the peak so far of the process that wrote it; at the end, of the whole run.
_PEAK = "peak_memory_mib"


class Trainer:
    """Trains a `Task` for config["train_steps"] steps, continuing from a checkpoint in the workdir.

    Args:
        task: model, loss, data, evaluation.
        config: the shared flags' values.
        workdir: receives checkpoints/, tensorboard/ and curves.jsonl.
        optimizer: Keras optimizer, made by `make_optimizer`.
        learning_rate_scale: factor of the learning rate; halved when a diverged run returns to its last
            checkpoint.
        strategy: the strategy under which the model was made. Default: TensorFlow's, for one device.
        read_from: folder of the run whose checkpoints are restored. Default: workdir.

    Raises:
        ValueError: if the replicas cannot share the batch evenly.
    """

    def __init__(
        self,
        task: Task,
        config: Mapping[str, Any],
        workdir: str,
        optimizer: keras.optimizers.Optimizer,
        learning_rate_scale: tf.Variable,
        strategy: tf.distribute.Strategy | None = None,
        read_from: str | None = None,
    ):
        self._task = task
        self._config = config
        self._optimizer = optimizer
        self._strategy = strategy or tf.distribute.get_strategy()
        check_batch_size(self._strategy, config["batch_size"], config["accumulation_steps"])
        self._agreement = Agreement(self._strategy)
        self._step = TrainingStep(task, config, optimizer, self._strategy)
        self._watch = EquilibriumWatch(config)
        self._inspection = Inspection(
            task, config["jit_compile"], config.get("inspect_gradient", False)
        )
        self._progress = Progress(workdir, task.display, config["train_steps"], task.item)
        self._clock = Clock()
        self._split: dict[str, float] = {}
        self._profiler = Profiler(os.path.join(workdir, "tensorboard"), config["profile_step"])
        evaluated = {
            "model": task.model,
            # Seeds and moving statistics, because checkpoints do not find Keras's seed generators
            # through the model.
            "state": list(task.model.non_trainable_variables),
        }
        objects = {
            **evaluated,
            "optimizer": optimizer,
            "learning_rate_scale": learning_rate_scale,
            "watch": self._watch.level,
            "convergence": [
                variable for layer in task.equilibria for variable in layer.metrics_variables
            ],
            **self._step.saved,
        }
        folders = [
            os.path.join(folder, "checkpoints") for folder in (workdir, read_from or workdir)
        ]
        self._state = RunState(
            *folders, config, objects, evaluated, self._agreement, task.score.lower_is_better
        )
        self._recovery = Recovery(
            config,
            task.model,
            self._step,
            self._state,
            self._progress,
            learning_rate_scale,
            self._largest,
        )

    @property
    def optimizer(self) -> keras.optimizers.Optimizer:
        """The built optimiser."""
        return self._optimizer

    @property
    def step(self) -> TrainingStep:
        """The training step."""
        return self._step

    @property
    def progress(self) -> Progress:
        """Curves and TensorBoard of the run."""
        return self._progress

    def batches(self, start_step: int) -> Iterator[Any]:
        """Returns the batches from a step on, each replica's rows on its device."""
        return distribute(
            self._strategy, lambda shard, shards: self._task.batches(start_step, shard, shards)
        )

    def train(self) -> dict[str, Any]:
        """Trains to the end and returns the curves, as columns, with `seconds_per_step`.

        In addition to the columns: `peak_memory_mib` (the largest of all processes that trained the
        run, instead of the column), `all_skipped_steps`, `rollbacks` (returns to a checkpoint), `best`
        (the best validation score and its step) and `kept_step`. Afterwards the model has the weights
        of kept_step, which is the best or the last step depending on config["keep"]; with --ema their
        averages.

        Raises:
            FloatingPointError: if too many consecutive steps (divergence_patience) went wrong, see
                `Divergence`, more than max_rollbacks times, or before the first checkpoint.
            Preempted: after SIGTERM or Ctrl-C, when a checkpoint of the last step has been written.
        """
        self._agreement.check_same(self._config)
        self._state.restore()
        # Even without a checkpoint, because a run that was killed before its first one left rows.
        self._progress.rewind(int(self._state.step))
        last = self._config["train_steps"]
        with noted_requests() as requests, self._progress.bar(int(self._state.step)):
            # Repeated after each return to a checkpoint.
            while int(self._state.step) < last:
                self._train_from(int(self._state.step), last, requests)
            if requests.asked:
                self._end(last)
        self._profiler.stop()
        columns = self._progress.curves.columns()
        columns["seconds_per_step"] = float(self._state.seconds) / max(last, 1)
        earlier = [value for value in columns.get(_PEAK, []) if value is not None]
        columns[_PEAK] = max([peak_resident_bytes() / 2**20, *earlier])
        columns["all_skipped_steps"] = int(self._step.skipped.numpy())
        columns["rollbacks"] = int(self._state.rollbacks)
        columns["best"] = self._state.best
        columns["kept_step"] = self._keep(last)
        return columns

    def _keep(self, last: int) -> int:
        """Gives the model the final weights of the run, and returns their step."""
        best = self._state.best
        if self._config["keep"] == "best" and best is not None and self._state.restore_best():
            return best["step"]
        take_averages(self._optimizer, self._task.model, self._config["ema"])
        return last

    def _train_from(self, step: int, last: int, requests: Any) -> None:
        """Trains from a step to the last one, or until the run returns to a checkpoint."""
        batches = self.batches(step)
        if self._agreement.alone and requests.asked:
            self._end(step)  # the checkpoint that it started from is still current
        self._clock.start(step)
        while step < last:
            late = self._agreement.is_chief and self._state.is_late()
            step = self._advance(batches, step, [requests.asked, late])
            self._progress.move_to(step)
            if self._is_multiple(step, "log_every"):
                self._report(step)
            if self._recovery.is_due(step) and self._has_diverged(step == last):
                self._recovery.roll_back(step)
                return
            if self._is_multiple(step, "log_every"):
                self._observe(step)
            if self._is_multiple(step, "inspect_every"):
                self._inspect(step)
            if self._is_multiple(step, "evaluate_every"):
                self._evaluate(step)
            asked, late = self._asked(requests)
            if asked or late or self._state.is_due(step):
                self._save(step, required=step == last or asked)
            if asked and step < last:
                self._end(step)

    def _advance(self, batches: Iterator[Any], step: int, asked: Sequence[bool]) -> int:
        """Makes the steps of one call, and returns the number of steps that the run has made."""
        self._profiler.at(step)
        # The first step after an inspection is timed in parts.
        if self._config["inspect_every"] and step and step % self._config["inspect_every"] == 0:
            self._pause(step)
            split = self._step.run_timed(batches, self._settings(step), asked)
            self._split = {f"{name}_seconds": value for name, value in (split or {}).items()}
            self._clock.start(step + 1)
            return step + 1
        until = min(step + self._config["steps_per_call"], self._next_stop(step))
        settings = [self._settings(each) for each in range(step, until)]
        new = self._step.run(batches, settings, asked)
        if new:
            # Compilation does not count towards a step's time.
            self._clock.start(until)
        return until

    def _settings(self, step: int) -> StepSettings:
        return self._watch.applied(settings_at(step, self._config))

    def _next_stop(self, step: int) -> int:
        """Returns the first step after which something else is due, or the settings change."""
        last = self._config["train_steps"]
        every = ("log_every", "evaluate_every", "checkpoint_every", "inspect_every")
        stops = [
            (step // period + 1) * period
            for period in (self._config[name] for name in every)
            if period
        ]
        stops += [s for s in (takeover_step(self._config), *self._profiler.stops) if s > step]
        return min([*stops, last])

    def _is_multiple(self, step: int, name: str) -> bool:
        """Whether something is due that is done every `every` steps and after the last one."""
        period = self._config[name]
        return bool(period and (step % period == 0 or step == self._config["train_steps"]))

    def _asked(self, requests: Any) -> tuple[bool, bool]:
        """Whether the run was asked to end, and whether a checkpoint is due by time.

        With several workers this is what they exchanged in the last step, so that all of them end or
        save after the same step.
        """
        if self._agreement.alone:
            return requests.asked, self._state.is_late()
        asked, late = self._step.asked.numpy()
        return bool(asked), bool(late)

    def _end(self, step: int) -> NoReturn:
        saved = int(self._state.step)
        there = "there" if saved == step else f"step {saved}, because the last steps were bad"
        self._progress.say(
            f"Stopped on request at step {step}. Run the same command again to resume from {there}."
        )
        raise Preempted(step)

    def _has_diverged(self, at_end: bool) -> bool:
        diverged = self._recovery.has_diverged(at_end)
        # At the end the weights are checked, of which each worker has its own copy.
        return bool(self._agreement.on(diverged)) if at_end else diverged

    def _save(self, step: int, required: bool = False) -> None:
        """Writes a checkpoint, unless the last steps went wrong; then the last good one is kept."""
        may_save = self._recovery.may_save(required)
        if not (self._agreement.on(may_save) if required else may_save):
            return
        self._pause(step)
        self._progress.flush()
        self._state.save(step)
        self._step.asked.assign([False, False])
        self._clock.start(step)

    def _pause(self, step: int) -> None:
        """Stops the clock, because the following work does not count towards a step's time."""
        self._step.wait()
        self._clock.stop(step)

    def _largest(self, step: int) -> dict[str, float]:
        """Returns the largest residual and spectral radius of the current model."""
        if self._config["depth"]:
            return {}
        found = self._inspection(self._a_batch(step), self._config["max_steps"])
        names = {"residual": "residual_now", "spectral_radius": "spectral_radius"}
        return {
            text: float(tf.reduce_max(found[name])) for name, text in names.items() if name in found
        }

    def _a_batch(self, step: int) -> Any:
        """Returns some rows of a step's batch, as many as a replica computes at a time."""
        parts = self._strategy.num_replicas_in_sync * self._config["accumulation_steps"]
        return next(iter(self._task.batches(step, 0, parts)))

    def _report(self, step: int) -> None:
        """Writes one row of the curves: the means over the steps since the last row."""
        rows = [row["step"] for row in self._progress.curves.rows if "loss" in row]
        means = self._step.report()  # waits for the device
        self._clock.stop(step)
        per_step = self._clock.seconds_per_step()
        settings = self._settings(step - 1)
        row = {
            "step": step,
            **self._split,
            **means,
            "rollbacks": int(self._state.rollbacks),
            **settings._asdict(),
            "seconds_per_step": per_step,
            f"{self._task.item}_per_second": self._task.items_per_step / per_step
            if per_step
            else None,
            # In every row, because a process that is killed cannot say it at its end.
            _PEAK: peak_resident_bytes() / 2**20,
        }
        self._split = {}
        for layer in self._task.equilibria:
            row.update(layer.convergence_report())
        self._progress.row(row)
        # Steps without a measured time (after a compilation) count like the others.
        self._state.seconds.assign_add((per_step or 0.0) * (step - (rows[-1] if rows else 0)))
        self._clock.start(step)

    def _observe(self, step: int) -> None:
        """Passes the new row to the equilibrium watch."""
        row = self._progress.curves.rows[-1]
        changed = self._watch.observe(row.get("residual"))
        if changed:
            self._progress.say(f"step {step}: {changed}")

    def _inspect(self, step: int) -> None:
        """Writes histograms over samples, and overall figures, of the equilibrium."""
        settings = self._settings(step - 1)
        if settings.explicit_steps:
            return
        self._pause(step)
        found = self._inspection(self._a_batch(step), settings.max_steps)
        write_histograms(found, self._progress.histograms(step))
        names = ("spectral_radius", "gradient_cosine", "reference_residual")
        figures = {name: float(tf.reduce_max(found[name])) for name in names if name in found}
        if figures:
            self._progress.curves.append({"step": step, **figures})
            self._progress.scalars(step, "train", figures)
        self._clock.start(step)

    def _evaluate(self, step: int) -> None:
        self._pause(step)
        with averaged_weights(self._optimizer, self._task.model, self._config["ema"]):
            results = self._task.evaluate()
            if self._recovery.weights_are_finite():
                self._state.save_if_best(step, results[self._task.score.name])
        self._progress.evaluation(step, results)
        self._clock.start(step)
