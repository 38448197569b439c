"""The training step: gradients on each replica, reduced once, clipped, and applied if finite."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdeq.cell_calls.batch_part import part_of_batch
from tfdeq.training.devices.strategies import several_workers
from tfdeq.training.schedule import StepSettings
from tfdeq.training.steps.accumulation import mean_over_parts
from tfdeq.training.steps.carried_state import CarriedState
from tfdeq.training.steps.divergence import Divergence
from tfdeq.training.steps.layer_state import LayerState
from tfdeq.training.steps.loss_scale import LossScale
from tfdeq.training.steps.step_metrics import StepMetrics
from tfdeq.training.task import CallSettings, Task


class TrainingStep:
    """Makes training steps, compiled, on all replicas of a strategy.

    On one device the step is one XLA program (with config["jit_compile"]); on several devices XLA
    compiles the computation of each replica, and tf.distribute reduces.

    Args:
        task: model and loss.
        config: the shared flags' values.
        optimizer: the optimiser, which neither clips nor reduces gradients.
        strategy: strategy of the model.

    Attributes:
        divergence: counts the most recent consecutive steps that went wrong. skipped: number of all
            steps that were not finite.
        asked: with several workers, whether one was asked to end, and whether the chief wants a
            checkpoint (see `run`).
    """

    def __init__(
        self,
        task: Task,
        config: Mapping[str, Any],
        optimizer: keras.optimizers.Optimizer,
        strategy: tf.distribute.Strategy,
    ):
        self._task = task
        self._config = config
        self._optimizer = optimizer
        self._strategy = strategy
        self._several_workers = several_workers(strategy)
        with strategy.scope():
            optimizer.build(task.model.trainable_variables)
            self._metrics = StepMetrics(task.measures)
            self.divergence = Divergence(config["divergence_patience"], task.uniform_loss)
            self.skipped = tf.Variable(0, trainable=False, name="all_skipped")
            self.asked = tf.Variable([False, False], trainable=False, name="asked")
            self._loss_scale = LossScale(config["precision"])
            self._carried = CarriedState(task.carried, config["batch_size"], strategy)
        self._layer_state = LayerState([task.model, *task.equilibria])
        self._functions: dict[int, Callable[..., Any]] = {}
        self._loops: dict[int, Callable[..., Any]] = {}
        self._called: set[int] = set()  # explicit_steps whose single step was compiled
        self._data_seconds, self._data_steps = 0.0, 0

    @property
    def saved(self) -> dict[str, Any]:
        """Returns the step's variables for a checkpoint: name -> variable or list of variables."""
        return {
            "divergence": self.divergence.saved,
            "all_skipped": self.skipped,
            # A row of the curves may include an interruption.
            "metrics": self._metrics.variables,
            "loss_scale": self._loss_scale.variables,
            "memory": self._carried.variables,
        }

    def run(
        self,
        batches: Iterator[Any],
        settings: Sequence[StepSettings],
        asked: Sequence[bool] = (False, False),
    ) -> bool:
        """Makes a step for each of the settings and returns whether something was compiled first.

        Args:
            batches: the result of `distribute`.
            settings: settings of the steps, all with the same explicit_steps.
            asked: whether this process was asked to end, and whether it wants a checkpoint. With
                several workers the attribute `asked` tells after the step whether any of them was.
        """
        explicit_steps = settings[0].explicit_steps
        asked = tf.constant([float(one) for one in asked])
        if len(settings) > 1:
            new = explicit_steps not in self._loops
            # Padded to a fixed length, so that a call with fewer steps needs no separate graph.
            padded = [*settings, *[settings[-1]] * (self._config["steps_per_call"] - len(settings))]
            vectors = [s.max_steps for s in padded], [s.penalty_share for s in padded]
            count = tf.constant(len(settings))
            self._loop(explicit_steps)(batches, *map(tf.constant, vectors), count, asked)
            return new
        new = explicit_steps not in self._called
        started = time.perf_counter()
        batch = next(batches)
        self._data_seconds += time.perf_counter() - started
        self._data_steps += 1
        self._call(batch, settings[0], asked, apply=True)
        return new

    def run_timed(
        self,
        batches: Iterator[Any],
        settings: StepSettings,
        asked: Sequence[bool] = (False, False),
    ) -> dict[str, float] | None:
        """Makes one step and returns the times of its parts, in seconds.

        The gradients are computed twice, the first time without an update and without any effect, so
        the step is the same as that of `run`.

        Returns:
            data (waiting for the batch), solve (forward, backward and reduction) and update; None if
            something had to be compiled.
        """
        moments = [time.perf_counter()]
        batch = next(batches)
        moments.append(time.perf_counter())
        asked = tf.constant([float(one) for one in asked])
        if settings.explicit_steps not in self._called:
            self._call(batch, settings, asked, apply=True)
            return None
        for apply in (False, True):
            self.wait()
            moments.append(time.perf_counter())
            self._call(batch, settings, asked, apply)
            self.wait()
            moments.append(time.perf_counter())
        data, solve, both = (moments[i + 1] - moments[i] for i in (0, 2, 4))
        return {"data": data, "solve": solve, "update": max(both - solve, 0.0)}

    def _call(self, batch: Any, settings: StepSettings, asked: tf.Tensor, apply: bool) -> None:
        """Calls the compiled single step."""
        self._called.add(settings.explicit_steps)
        self._function(settings.explicit_steps)(
            batch,
            tf.constant(settings.max_steps),
            tf.constant(settings.penalty_share),
            asked,
            tf.constant(apply),
        )

    def wait(self) -> None:
        """Waits until all steps made so far are done."""
        self.divergence.consecutive.numpy()

    def report(self) -> dict[str, Any]:
        """Returns the means since the last report, and starts new ones."""
        row = self._metrics.report(self._strategy.num_replicas_in_sync)
        row["learning_rate"] = float(keras.ops.convert_to_numpy(self._optimizer.learning_rate))
        if self._loss_scale.variables:
            row["loss_scale"] = float(self._loss_scale.value())
        if self._data_steps:
            row["data_seconds"] = self._data_seconds / self._data_steps
        self._data_seconds, self._data_steps = 0.0, 0
        return row

    def _local(self, value: Any) -> tf.Tensor:
        """Returns the first replica's part of a value that is the same on all."""
        return self._strategy.experimental_local_results(value)[0]

    def _function(self, explicit_steps: int) -> Callable[..., Any]:
        """Returns (batch, max_steps, penalty_share, asked, apply) -> None, the whole compiled step."""
        if explicit_steps not in self._functions:
            several = self._strategy.num_replicas_in_sync > 1
            jit_compile = self._config["jit_compile"]

            def on_replica(*arguments):
                return self._mean_over_parts(explicit_steps, *arguments)

            if several:
                on_replica = tf.function(on_replica, jit_compile=jit_compile, autograph=False)

            def step(batch, max_steps, penalty_share, asked, apply):
                arguments = (on_replica, batch, max_steps, penalty_share, asked, apply)
                self._update(*self._strategy.run(self._reduced, args=arguments), apply)

            self._functions[explicit_steps] = tf.function(
                step, jit_compile=jit_compile and not several, autograph=False
            )
        return self._functions[explicit_steps]

    def _loop(self, explicit_steps: int) -> Callable[..., Any]:
        """Returns (batches, max_steps [K], penalty_share [K], count, asked) -> None, `count` steps."""
        if explicit_steps not in self._loops:
            step = self._function(explicit_steps)

            def steps(batches, max_steps, penalty_share, count, asked):
                def body(index):
                    settings = max_steps[index], penalty_share[index]
                    step(next(batches), *settings, asked, tf.constant(True))
                    return index + 1

                tf.while_loop(
                    lambda index: index < count, body, [tf.constant(0)], parallel_iterations=1
                )

            self._loops[explicit_steps] = tf.function(steps, autograph=False)
        return self._loops[explicit_steps]

    def _reduced(self, on_replica, batch, max_steps, penalty_share, asked, apply):
        """On a replica: returns (finite, loss, asked, gradients, carried state), the same on all replicas.

        Also returns the layers' state from before.
        """
        replicas = self._strategy.num_replicas_in_sync
        before = self._layer_state.values()
        carried = self._carried.rows()
        found, carried = on_replica(batch, carried, self._first_part(), max_steps, penalty_share)
        spoilt = tf.cast(self._layer_state.is_spoilt(before), tf.float32)
        if replicas > 1:
            # Divided first, by an operation on the replica's device, because a reduction uses the
            # device of its input, and a function's argument or result has none.
            shares = [part / replicas for part in (asked, spoilt, *found)]
            context = tf.distribute.get_replica_context()
            asked, spoilt, *found = context.all_reduce(tf.distribute.ReduceOp.SUM, shares)
            carried = self._carried.gathered(carried)
        (loss, total, *rest), count = found, len(self._task.measures)
        gradients = self._loss_scale.unscaled(rest[count:])
        norm = tf.linalg.global_norm(gradients)
        finite = tf.math.is_finite(norm) & tf.math.is_finite(total) & tf.equal(spoilt, 0.0)
        self._metrics.update([loss, norm, *rest[:count]], finite, apply)
        # As a factor, because tf.clip_by_global_norm makes all gradients NaN if one is.
        clip = tf.minimum(1.0, self._config["gradient_clip"] / tf.maximum(norm, 1e-30))
        return finite, loss, asked, [clip * gradient for gradient in gradients], carried, before

    def _update(
        self,
        finite: Any,
        loss: Any,
        asked: Any,
        gradients: list[Any],
        carried: Any,
        before: list[Any],
        apply: tf.Tensor,
    ) -> None:
        """Over all replicas: applies the gradients if the step is finite and counts."""
        variables = self._task.model.trainable_variables

        def update(gradients):
            self._optimizer.apply(gradients, variables)
            return tf.constant(True)

        def put_back(before):
            self._layer_state.put_back(before)
            return tf.constant(False)

        def run(on_replica, argument):
            return lambda: self._local(self._strategy.run(on_replica, args=(argument,)))

        finite = self._local(finite)
        # A step that is not finite changes nothing: neither the weights nor the states of the
        # optimiser and the layers. Random generators are restored too, so the run is as if it had
        # never seen the batch.
        tf.cond(finite & apply, run(update, gradients), run(put_back, before))
        self._carried.keep(carried, finite & apply, self._local)
        self.divergence.note(self._local(loss), finite, apply)
        self.skipped.assign_add(tf.where(finite | ~apply, 0, 1))
        self._loss_scale.update(finite, apply)
        if self._several_workers:
            asked_before = tf.convert_to_tensor(self.asked)
            self.asked.assign(asked_before | (self._local(asked) > 0.0))

    def _first_part(self) -> tuple[tf.Tensor, tf.Tensor]:
        """On a replica: returns the index of its first part of the batch, and the seed [2] of the batch."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        # Counts only applied steps, so that a skipped step has no effect here either.
        made = keras.ops.cast(self._optimizer.iterations, "int64")
        seed = tf.stack([tf.constant(self._config["seed"], tf.int64), made])
        return tf.cast(replica, tf.int32) * self._config["accumulation_steps"], seed

    def _mean_over_parts(
        self,
        explicit_steps: int,
        batch: Any,
        carried: Any,
        first_part: tuple[tf.Tensor, tf.Tensor],
        max_steps: tf.Tensor,
        penalty_share: tf.Tensor,
    ) -> tuple[list[tf.Tensor], Any]:
        """Returns [loss, loss with penalties, *measures, *gradients], means over a replica's parts.

        Also returns the state that the batch passes on.
        """
        count = self._config["accumulation_steps"]
        first, seed = first_part

        def compute(index, batch, carried):
            parts = self._strategy.num_replicas_in_sync * count
            with part_of_batch(first + index, parts, seed):
                return self._of_part(explicit_steps, batch, carried, max_steps, penalty_share)

        shapes = [tf.TensorSpec([])] * (2 + len(self._task.measures))
        shapes += [tf.TensorSpec(v.shape, v.dtype) for v in self._task.model.trainable_variables]
        return mean_over_parts(compute, count, batch, carried, shapes)

    def _of_part(
        self,
        explicit_steps: int,
        batch: Any,
        carried: Any,
        max_steps: tf.Tensor,
        penalty_share: tf.Tensor,
    ) -> tuple[list[tf.Tensor], Any]:
        model = self._task.model
        with tf.GradientTape() as tape:
            settings = CallSettings(explicit_steps, max_steps, training=True)
            loss = self._task.loss(batch, settings, carried)
            penalties = [penalty_share * tf.cast(penalty, tf.float32) for penalty in model.losses]
            total = tf.add_n([loss.value, *penalties])
            scaled = self._loss_scale.scaled(total)
        gradients = tape.gradient(
            scaled,
            model.trainable_variables,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        # An embedding's gradient consists of slices, which neither a loop nor XLA's caller can add.
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        measures = [tf.cast(loss.measures[name], tf.float32) for name in self._task.measures]
        return [loss.value, total, *measures, *gradients], loss.carried
