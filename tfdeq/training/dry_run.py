"""`--dry_run`: describes a run and makes one step of it, without leaving files."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfdeq.training.devices.process_memory import peak_resident_bytes
from tfdeq.training.schedule import settings_at
from tfdeq.training.trainer import Trainer

_SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 1.0)
_MIB = 2**20


def parameter_lines(model: keras.Model) -> list[str]:
    """Returns the number of parameters of each part of a model and of the whole."""
    lines = [f"  {layer.name}: {layer.count_params():,}" for layer in model.layers]
    return [f"Parameters: {model.count_params():,}", *lines]


def memory_lines(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> list[str]:
    """Returns the memory of weights, gradients and the optimiser's state, in MiB.

    The solve needs additional memory, which does not depend on the number of steps and is measured by
    one step.
    """
    weights = sum(_size(variable) for variable in model.variables)
    gradients = sum(_size(variable) for variable in model.trainable_variables)
    state = sum(_size(variable) for variable in optimizer.variables)
    total = weights + gradients + state
    return [
        f"Memory beside the solve: {total / _MIB:.1f} MiB (weights {weights / _MIB:.1f}, gradients "
        f"{gradients / _MIB:.1f}, optimiser {state / _MIB:.1f})"
    ]


def schedule_lines(config: Mapping[str, Any], schedule: Any) -> list[str]:
    """Returns learning rate, applications or budget, and penalty over the course of the run."""
    lines = ["Schedule:", "  step       learning rate  trains                     penalty"]
    last = config["train_steps"]
    weight = config["jacobian_penalty"] if config.get("model", "deq") == "deq" else 0.0
    for step in sorted({min(round(share * last), last - 1) for share in _SHARES}):
        explicit, budget, share = settings_at(step, config)
        made = "applications" if config.get("model", "deq") == "deq" else "layers"
        what = f"{explicit} {made}" if explicit else f"equilibrium, {budget} steps"
        penalty = weight * share
        lines.append(f"  {step:<9}  {float(schedule(step)):<13.3g}  {what:<25}  {penalty:.3g}")
    return lines


def one_step(trainer: Trainer, config: Mapping[str, Any]) -> list[str]:
    """Makes a step of the most expensive kind, that of the last step; returns its time and peak memory."""
    settings = settings_at(config["train_steps"] - 1, config)
    batches = trainer.batches(0)
    seconds = []
    for _ in range(2):  # the first one compiles
        started = tf.timestamp()
        trainer.step.run(batches, [settings])
        trainer.step.wait()
        seconds.append(float(tf.timestamp() - started))
    return [
        f"One step: {seconds[1]:.3f} s after {seconds[0]:.1f} s of compiling and the first one; "
        f"{config['train_steps']:,} of them: {seconds[1] * config['train_steps'] / 60:.0f} minutes",
        f"Peak memory of this process: {peak_resident_bytes() / _MIB:.0f} MiB",
    ]


def _size(variable: Any) -> int:
    size = tf.as_dtype(variable.dtype).size
    for axis in variable.shape:
        size *= axis
    return size
