"""The flags of all runs, and the configuration made from them."""

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tensorflow as tf
from absl import flags

from tfdeq.programs import presets
from tfdeq.programs.flag_groups import REMOVED
from tfdeq.training.devices.allocator import keep_freed_memory
from tfdeq.training.devices.strategies import STRATEGIES, make_strategy
from tfdeq.training.flags.flag_uses import is_used, refuse_unused, unused, when_used
from tfdeq.training.steps.optimizers import SCHEDULES

FLAGS = flags.FLAGS

# Flags that may differ between a run and its continuation: its place, and its use of the machine.
_NOT_CONFIGURATION = ("workdir", "prepared_dir", "tpu", "keep_freed_memory")
# Flags that may also differ, although the run records them: how often to report and save, how the
# same step is computed (up to rounding, and to noise that parts and replicas draw separately), and
# how steps that are not finite are handled.
_MAY_DIFFER = (
    "log_every",
    "evaluate_every",
    "checkpoint_every",
    "checkpoint_minutes",
    "inspect_every",
    "inspect_gradient",
    "profile_step",
    "steps_per_call",
    "strategy",
    "logical_devices",
    "accumulation_steps",
    "jit_compile",
    "loss_chunk",
    "divergence_patience",
    "max_rollbacks",
)
# flag -> its effective value in older runs, from before it existed. For a flag without an entry,
# the default does what the code did before.
_BEFORE: dict[str, Any] = {"keep": "last"}


# absl's function, name, default, help, additional arguments.
_RUN = [
    (flags.DEFINE_string, "workdir", None, "Folder of the run. It is created if it is missing; if it holds this run, the run is resumed."),
    (flags.DEFINE_integer, "train_steps", 2000, "Optimiser steps."),
    (flags.DEFINE_integer, "batch_size", 16, "Examples per step, over all devices."),
    (flags.DEFINE_integer, "accumulation_steps", 1, "Number of parts of a batch whose gradients are computed one after the other and averaged. It needs less memory and makes the same step, except for dropout masks and batch statistics, which each part has for itself. It must divide --batch_size."),
    (flags.DEFINE_float, "learning_rate", 6e-3, "Peak learning rate. It is reached by a linear warm-up and then follows --schedule."),
    (flags.DEFINE_float, "warmup_share", 0.05, "Share of the steps, at the start of training, in which the learning rate rises linearly to its peak."),
    (flags.DEFINE_enum, "schedule", "cosine", "Learning rate after the warm-up: cosine falls to 5 % of the peak, inverse_sqrt falls with the square root of the steps, constant does not fall.", sorted(SCHEDULES)),
    (flags.DEFINE_float, "gradient_clip", 1.0, "Largest global norm of the gradient; a larger gradient is scaled down to it."),
    (flags.DEFINE_enum, "optimizer", "muon", "Optimiser: Adam, or Muon for the matrices inside the cell and Adam for the rest.", ["adam", "muon"]),
    (flags.DEFINE_float, "adam_rate_ratio", 1.0, "Learning rate of the weights that Adam trains beside Muon (above all embeddings), as a multiple of --learning_rate."),
    (flags.DEFINE_integer, "seed", 0, "Seed of weights, batches and noise."),
    (flags.DEFINE_float, "ema", 0.0, "Momentum of a moving average of the weights, for example 0.999; the average is then evaluated and kept. 0: none."),
    (flags.DEFINE_enum, "keep", "best", "Weights that the run keeps, tests and exports: those of the best evaluation on validation data, or the last ones; with --ema, the averages.", ["best", "last"]),
    (flags.DEFINE_enum, "precision", "float32", "Precision of the cell's arithmetic; weights, the state of the solve and the loss are float32.", ["float32", "mixed_bfloat16", "mixed_float16"]),
    (flags.DEFINE_enum, "strategy", "one_device", "Devices: the first GPU or the CPU; all GPUs of this machine; all processes that TF_CONFIG names; a TPU.", STRATEGIES),
    (flags.DEFINE_integer, "logical_devices", 0, "Number of devices into which the CPU is divided for --strategy=mirrored, to try it without several GPUs; 0: none."),
    (flags.DEFINE_string, "tpu", "", "Name or address of the TPU for --strategy=tpu. Default: what the environment names."),
    (flags.DEFINE_integer, "steps_per_call", 1, "Steps in one call of the compiled program, if nothing is due between them; more steps save a small model the overhead of calls."),
    (flags.DEFINE_integer, "profile_step", 0, "Step from which TensorFlow's profiler records five, for TensorBoard; 0: none."),
    (flags.DEFINE_bool, "inspect_gradient", False, "Whether these inspections also compute the cosine between the gradient and that of a tight solve."),
    (flags.DEFINE_integer, "inspect_every", 500, "Steps between inspections of the equilibrium: histograms over samples and spectral radius, for TensorBoard; 0: none."),
    (flags.DEFINE_bool, "keep_freed_memory", True, "Whether the process, with glibc, keeps the memory that a step frees for the next step: faster on the CPU, but it uses more memory."),
    (flags.DEFINE_bool, "jit_compile", True, "Whether XLA compiles the training step."),
    (flags.DEFINE_integer, "log_every", 20, "Steps between rows of the curves."),
    (flags.DEFINE_integer, "evaluate_every", 200, "Steps between evaluations on validation data."),
    (flags.DEFINE_integer, "checkpoint_every", 200, "Steps between checkpoints."),
    (flags.DEFINE_float, "checkpoint_minutes", 10.0, "Minutes after which a checkpoint is written in any case; 0: only every --checkpoint_every steps."),
    (flags.DEFINE_integer, "divergence_patience", 20, "Number of bad steps in a row after which the run returns to its last checkpoint. A step is bad if its loss or gradient is NaN or infinite (it is skipped), or if its loss is more than twice that of a uniform guess and more than twice the lowest so far."),
    (flags.DEFINE_integer, "max_rollbacks", 2, "Largest number of returns to a checkpoint, each with half the learning rate, before the run stops with a diagnosis."),
]  # fmt: skip


def define_run_flags(**defaults: Any) -> list[str]:
    """Defines the flags of all runs and returns their names; defaults override those above."""
    names = define(_RUN, defaults)
    flags.DEFINE_enum(
        "preset",
        None,
        presets.names(),
        "A file of flags that comes with tfdeq, by its name; as --flagfile with its path. Default: none.",
    )
    flags.DEFINE_bool(
        "dry_run",
        False,
        "Print model size, memory and schedule, make one step, and exit; --workdir is not changed. "
        "Default: false.",
    )
    flags.mark_flag_as_required("workdir")
    _define_bounds()
    _removed("warmup_steps", "--warmup_share, a share of --train_steps")
    flags.register_multi_flags_validator(
        ["batch_size", "accumulation_steps"],
        lambda values: values["batch_size"] % values["accumulation_steps"] == 0,
        "--accumulation_steps must divide --batch_size.",
    )
    return names


def define(definitions: list[tuple], defaults: Mapping[str, Any]) -> list[str]:
    """Defines flags and returns their names.

    Args:
        definitions: (absl's function, name, default, help, additional arguments). The default, and the
            other flags that must be set for the flag to be used, are added to the help.
        defaults: name -> value instead of that default.
    """
    names = [definition[1] for definition in definitions]
    unknown = set(defaults) - set(names)
    if unknown:
        raise ValueError(f"No shared flags of these names: {sorted(unknown)}.")
    for define_flag, name, default, text, *choices in definitions:
        value = defaults.get(name, default)
        if when_used(name):
            text = f"{text} Used with {when_used(name)}."
        described = (
            text if value in (None, []) or "efault:" in text else f"{text} Default: {value}."
        )
        define_flag(name, value, *choices, described)
    return names


def apply_recipe(values: flags.FlagValues, recipe: Mapping[str, Any]) -> None:
    """Gives flags that nobody set the values of a recipe, flag -> value, as far as they are used then."""
    recipe = {name: value for name, value in recipe.items() if not values[name].present}
    together = {**values.flag_values_dict(), **recipe}
    for name, value in recipe.items():
        if is_used(name, together):
            values[name].value = value


def set_up_process() -> tf.distribute.Strategy:
    """Sets up memory and devices according to the flags; returns the strategy, see `make_strategy`."""
    if FLAGS.keep_freed_memory:
        keep_freed_memory()
    return make_strategy(FLAGS.strategy, FLAGS.logical_devices, FLAGS.tpu)


def may_differ(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the flags that a continuation of a run may change.

    train_steps is one of them if the user has set it, so that a run does not become longer or shorter
    by mistake.
    """
    names = list(_MAY_DIFFER)
    if is_used("watch_residual", config):
        names.remove("log_every")  # the watch acts on rows, so their length matters
    if config.get("keep", "best") == "best":
        names.remove("evaluate_every")  # the kept model is one of those evaluated
    if not (FLAGS.is_parsed() and FLAGS["train_steps"].using_default_value):
        names.append("train_steps")
    return tuple(names)


def before_it_existed(names: Iterable[str]) -> dict[str, Any]:
    """Returns flag -> its effective value in runs that were started before it existed."""
    defaults = {name: FLAGS[name].default for name in names if name in FLAGS}
    return {**defaults, **{name: value for name, value in _BEFORE.items() if name in defaults}}


def check_uses() -> None:
    """Raises an error for flags on the command line without an effect; only lists those of a --flagfile.

    A file of flags may be made for several models, as the presets are.

    Raises:
        ValueError: with an explanation for each of them.
    """
    values = FLAGS.flag_values_dict()
    defaults = {name: FLAGS[name].default for name in values}
    given = on_command_line(sys.argv[1:])
    refuse_unused(values, defaults, given)
    others = [name for name in values if FLAGS[name].present and name not in given]
    ignored = unused(values, defaults, others)
    if ignored:
        names = ", ".join(f"--{name}" for name in ignored)
        print(f"Of the --flagfile, these change nothing here: {names}.", flush=True)


def on_command_line(arguments: Iterable[str]) -> set[str]:
    """Returns the names of the flags that are set by the arguments, not by a --flagfile."""
    found = set()
    for argument in arguments:
        if argument == "--":
            break
        name = argument.lstrip("-").split("=")[0]
        if argument.startswith("-"):
            found.add(name if name in FLAGS else name.removeprefix("no"))
    return found & set(FLAGS)


def configuration(names: list[str]) -> dict[str, Any]:
    """Returns the values of the named flags, without those that may change on resumption."""
    return {name: FLAGS[name].value for name in names if name not in _NOT_CONFIGURATION}


def _define_bounds() -> None:
    at_least(1, "train_steps", "batch_size", "log_every", "evaluate_every", "checkpoint_every",
             "divergence_patience", "accumulation_steps", "steps_per_call")  # fmt: skip
    bound("ema", lambda value: 0 <= value < 1, "must be in [0, 1)")
    above_zero("learning_rate", "adam_rate_ratio", "gradient_clip")
    at_least(0, "checkpoint_minutes", "max_rollbacks", "logical_devices", "profile_step",
             "inspect_every")  # fmt: skip
    bound("warmup_share", lambda value: 0 <= value <= 1, "must be in [0, 1]")


def _removed(name: str, instead: str) -> None:
    """Raises an error for a removed flag, with its replacement."""
    flags.DEFINE_string(name, None, f"{REMOVED} Give {instead}.")
    bound(name, lambda value: value is None, f"is no more. Give {instead}")


def at_least(lowest: int, *names: str) -> None:
    """Raises an error for values of flags below a number."""
    for name in names:
        bound(name, lambda value: value >= lowest, f"must be at least {lowest}")


def above_zero(*names: str) -> None:
    """Raises an error for values of flags that are not above 0."""
    for name in names:
        bound(name, lambda value: value > 0, "must be greater than 0")


def bound(name: str, valid: Callable[[Any], bool], text: str) -> None:
    """Raises an error for invalid values of a flag; text describes the valid ones."""
    flags.register_validator(name, valid, f"--{name} {text}.")
