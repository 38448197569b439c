"""Callbacks for `model.fit`: `EquilibriumMonitor` keeps the training of equilibria stable."""

import math
from typing import Any

import keras
import tensorflow as tf

from tfdeq.layer import DEQLayer
from tfdeq.solvers.solver import require_integer, require_positive_integer
from tfdeq.steadiness.residual_watch import ACTIONS, ResidualWatch
from tfdeq.steadiness.scaled_schedule import RateHalving
from tfdeq.steadiness.training_state import TrainingState


class EquilibriumMonitor(keras.callbacks.Callback):
    """Keeps `model.fit` of models with `DEQLayer` stable, and reports what it does.

    It checks the model every `frequency` batches.

    - If a layer's mean relative residual in training is above the threshold, the weight of its Jacobian
      penalty doubles, up to 16 times its value (0.1, 0.2, … 1.6 if the layer has none), or its budget
      grows by a quarter, up to 4 times its value. Below half the threshold one change is undone.
      A raised penalty has at least 2 power steps. While the mean residual of a batch is above 0.1, only the
      penalty trains the cell: the gradient through a z that is not an equilibrium is left out.
    - It keeps a copy of the last good state: weights, state of the layers and of the optimizer, all finite,
      with residuals of at most the threshold (or at most those of the copy before). If the loss or the state
      is NaN or infinite, or if residuals stay high although nothing more can be raised, it restores that
      copy, halves the learning rate, whether that is a number or a schedule, and raises the penalty or
      budget once. The epoch's means of loss and metrics start again.
    - If residuals are high, or something is NaN, when training ends, the last good state is restored.
    - After `max_restores` restores it prints a diagnosis and stops training with the last good state.

    Works with jit_compile, run_eagerly, steps_per_execution and mixed precision. Compiled steps
    read the penalty and the budget at each call, so nothing is traced again, and the changes are
    not saved with the model. After fit the layers train as without a monitor. A monitor that is
    used again with the same model continues from its last changes. Layers inside another DEQLayer's
    cell are part of that layer and are not watched.

    Args:
        action: what to raise, "penalty", "budget" or "none". Default "penalty".
        residual_threshold: mean relative residual, > 0. Default None: 5e-3, or twice the tolerance of the
            layer's solver if that is more.
        frequency: number of batches between checks, >= 1. Each check copies the variables to the CPU's
            memory. Default 20.
        max_restores: largest number of restores, >= 0. Default 5.
        patience: number of checks in a row with high residuals, with nothing more to raise, after which the
            last good state is restored, >= 1. Default 10.
        log_dir: folder for TensorBoard logs: residual, penalty and budget scale of each layer, learning
            rate and restores, by batch. Default None: none.
        verbose: whether to print what it does. Default True.

    Raises:
        ValueError: at construction for settings out of range; in fit for a model without a DEQLayer
            that it can watch.

    Example:
        >>> inputs = keras.Input((3,))
        >>> z = DEQLayer(tfdeq.cells.DenseCell(3))(inputs)
        >>> model = keras.Model(inputs, keras.layers.Dense(1)(z))
        >>> model.compile("adam", "mse")
        >>> monitor = tfdeq.callbacks.EquilibriumMonitor()
        >>> history = model.fit(tf.ones([8, 3]), tf.ones([8, 1]), verbose=0, callbacks=[monitor])
        >>> monitor.restores
        0
    """

    def __init__(
        self,
        action: str = "penalty",
        residual_threshold: float | None = None,
        frequency: int = 20,
        max_restores: int = 5,
        patience: int = 10,
        log_dir: str | None = None,
        verbose: bool = True,
    ):
        super().__init__()
        if action not in ACTIONS:
            raise ValueError(f"action must be one of {', '.join(ACTIONS)}; received {action!r}.")
        if residual_threshold is not None and not 0.0 < float(residual_threshold) < math.inf:
            raise ValueError(
                f"residual_threshold must be a finite number > 0; received {residual_threshold!r}."
            )
        require_positive_integer("frequency", frequency)
        require_integer("max_restores", max_restores, lowest=0)
        require_positive_integer("patience", patience)
        self.action, self.residual_threshold = action, residual_threshold
        self.frequency, self.max_restores, self.patience = frequency, max_restores, patience
        self.log_dir, self.verbose = log_dir, verbose
        self.restores = 0
        self._watches: list[ResidualWatch] = []
        self._rate: RateHalving | None = None
        self._rated: Any = None  # the optimizer that _rate belongs to
        self._good: TrainingState | None = None
        self._batch = self._looked = self._epoch_start = 0  # batches of this fit
        self._last_words = "No look before was of finite numbers."
        self._training = self._in_validation = False
        self._writer = None

    def on_train_begin(self, logs: Any = None) -> None:
        self._watch(self._layers())
        trace = False
        for watch in self._watches:
            control = watch.layer.training_control
            trace |= not control.active
            control.active = True
            watch.apply()
            watch.metrics_were_reset()
        optimizer = self.model.optimizer
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        if self._rated is not optimizer:
            self._rate, self._rated = RateHalving(optimizer), optimizer
        trace |= self._rate.prepare()
        if trace:  # steps that are already traced do not read these variables
            self.model.make_train_function(force=True)
        self._batch = self._looked = self._epoch_start = 0
        self._keep(TrainingState(self.model), math.inf)
        self._training = True
        if self.log_dir is not None:
            self._writer = tf.summary.create_file_writer(str(self.log_dir))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._in_validation = False
        self._epoch_start = self._batch
        for watch in self._watches:
            watch.metrics_were_reset()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._batch = self._epoch_start + batch + 1
        if self._batch - self._looked >= self.frequency:
            self._look(logs)

    def on_test_begin(self, logs: Any = None) -> None:
        # evaluate is about to reset the metrics.
        if self._training and not self._in_validation:
            self._collect()
            self._in_validation = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not _is_finite(logs):  # before another callback saves it
            self._look(logs)
        elif not self._in_validation:
            self._collect()

    def on_train_end(self, logs: Any = None) -> None:
        if self._batch > self._looked and not TrainingState(self.model).finite:
            self._good.restore()
            self._say(
                f"{_NOT_FINITE} in the last steps; the model is that of {self._good_place()}."
            )
        elif self._good_is_steady and not all(watch.is_low for watch in self._watches):
            self._good.restore()
            self._say(f"residuals were high at the end; the model is that of {self._good_place()}.")
        for watch in self._watches:
            watch.release()
        self._rate.finish()
        self._training = False
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _layers(self) -> list[DEQLayer]:
        """Returns the layers to watch: those of the model that are not part of another one's cell."""
        found = {
            id(layer): layer
            for layer in self.model._flatten_layers()
            if isinstance(layer, DEQLayer)
        }
        for layer in list(found.values()):
            for inner in layer.cell._flatten_layers():
                found.pop(id(inner), None)
        silent = [layer.name for layer in found.values() if not layer.convergence_metrics]
        if silent:
            self._say(f"not watched, for want of convergence_metrics=True: {', '.join(silent)}.")
        watched = [layer for layer in found.values() if layer.convergence_metrics]
        if not watched:
            raise ValueError(
                "EquilibriumMonitor watches the DEQLayers of a model; "
                f"{self.model.name!r} has none with convergence_metrics=True. Leave the callback out."
            )
        return watched

    def _watch(self, layers: list[DEQLayer]) -> None:
        if [watch.layer for watch in self._watches] == layers:
            return  # the same model again: keep the changes
        self._watches = [
            ResidualWatch(layer, self.action, self._threshold(layer)) for layer in layers
        ]
        self.restores = 0

    def _threshold(self, layer: DEQLayer) -> float:
        if self.residual_threshold is not None:
            return float(self.residual_threshold)
        return max(5e-3, 2.0 * float(layer.solver.tolerance))

    def _collect(self) -> None:
        for watch in self._watches:
            watch.collect()

    def _look(self, logs: Any) -> None:
        self._looked = self._batch
        if not self._in_validation:
            self._collect()
        state = TrainingState(self.model)
        if not (_is_finite(logs) and state.finite):
            self._return(f"{_NOT_FINITE}.")
            return
        changes = [watch.close_window() for watch in self._watches]
        for change in filter(None, changes):
            self._say(change + ".")
        self._log()
        lost = [watch for watch in self._watches if watch.high >= self.patience]
        if lost and self._good_is_steady:
            names = ", ".join(f"{watch.layer.name} ({watch.residual:.3g})" for watch in lost)
            self._return(f"residuals stay high though nothing more can be raised: {names}.")
            return
        self._last_words = f"The last look, at batch {self._batch}: {self._described(logs)}."
        steady = all(watch.is_low for watch in self._watches)
        residual = max((watch.residual or 0.0) for watch in self._watches)
        if steady or residual <= self._good_residual:
            self._keep(state, residual, steady)

    def _keep(self, state: TrainingState, residual: float, steady: bool = False) -> None:
        self._good, self._good_batch = state, self._batch
        self._good_residual, self._good_is_steady = residual, steady

    def _return(self, reason: str) -> None:
        """Restores the last good state with half the learning rate, or stops training there."""
        rate = self._rate.rate
        self._good.restore()
        self.model.reset_metrics()
        for watch in self._watches:
            watch.metrics_were_reset()
            watch.drop_window()
        if self.restores >= self.max_restores:
            self.model.stop_training = True
            self._say(
                f"Warning: {reason} Giving up after {self.restores} returns; the model is that of "
                f"{self._good_place()}. {self._last_words} Lower the learning rate, clip gradients "
                "(global_clipnorm), raise jacobian_penalty, or give the solver more max_steps."
            )
            return
        self.restores += 1
        for watch in self._watches:
            watch.raise_level()
        halved = self._rate.halve(rate)
        rates = f"learning rate {self._rate.rate:.3g}" if halved else "the learning rate as it is"
        settings = "; ".join(f"{watch.layer.name}: {watch.setting}" for watch in self._watches)
        self._say(
            f"{reason} Going on from {self._good_place()} with {rates}; {settings} (return "
            f"{self.restores} of at most {self.max_restores})."
        )

    def _good_place(self) -> str:
        return f"batch {self._good_batch}"

    def _described(self, logs: Any) -> str:
        found = [f"loss {float(logs['loss']):.3g}"] if "loss" in (logs or {}) else []
        for watch in self._watches:
            residual = "unknown" if watch.residual is None else f"{watch.residual:.3g}"
            found.append(f"{watch.layer.name}: residual {residual}, {watch.setting}")
        return "; ".join([*found, f"learning rate {self._rate.rate:.3g}"])

    def _log(self) -> None:
        if self._writer is None:
            return
        with self._writer.as_default(step=self._batch):
            for watch in self._watches:
                for name, value in watch.numbers.items():
                    tf.summary.scalar(f"{watch.layer.name}/{name}", value)
            tf.summary.scalar("learning_rate", self._rate.rate)
            tf.summary.scalar("restores", self.restores)

    def _say(self, line: str) -> None:
        if self.verbose:
            # On a new line below Keras's progress bar.
            start = "\n" if self.params.get("verbose") == 1 else ""
            print(f"{start}EquilibriumMonitor, batch {self._batch}: {line}", flush=True)


_NOT_FINITE = "NaN or infinity in the loss or the weights"


def _is_finite(logs: Any) -> bool:
    """Returns whether the loss is finite; true if there is none."""
    loss = (logs or {}).get("loss")
    return loss is None or math.isfinite(float(loss))
