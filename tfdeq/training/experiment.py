"""A trainer's run from flags to metrics.json, for every trainer and strategy."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdeq.programs.preemption import hear_requests
from tfdeq.programs.workdir import locked, read_json, write_atomically, write_json
from tfdeq.training import dry_run as rehearsal
from tfdeq.training.devices.lost_workers import other_worker_lost
from tfdeq.training.devices.strategies import is_chief, several_workers
from tfdeq.training.flags.shared import before_it_existed, may_differ
from tfdeq.training.records import environment
from tfdeq.training.records.resumption import (
    FINGERPRINT,
    PLACES_OF_DATA,
    check_configuration,
    finished,
    going_on,
    steps_made,
)
from tfdeq.training.schedule import SHORTEST
from tfdeq.training.steps.optimizers import learning_rate_schedule, make_optimizer
from tfdeq.training.task import Task
from tfdeq.training.trainer import Trainer


class Experiment(NamedTuple):
    """The built parts of a run, ready for training."""

    task: Task
    # () -> metrics["test"] of the trained model
    test: Callable[[], dict[str, Any]]
    # parts of the names of the output layers, which Adam trains instead of Muon
    output_layers: Sequence[str] = ()
    # (workdir) -> None, called before training in the process that writes; may write files
    before: Callable[[str], None] = lambda workdir: None
    # (workdir, metrics, TensorBoard's writer) -> None, called after training; may write files and
    # pictures
    after: Callable[[str, dict[str, Any], tf.summary.SummaryWriter], None] = lambda *_: None
    # the kind of the task, for exporting and serving the run; see `tfdeq.runs.kind`
    kind: Mapping[str, Any] | None = None
    # fingerprint of the data, equal only for equal data: a run continues only with the same data;
    # None: not known, or already in the configuration
    fingerprint: str | None = None


def describe(config: Mapping[str, Any]) -> str:
    """Returns a short description of what a configuration trains."""
    depth, model = config["depth"], config.get("model", "deq")
    if model != "deq":
        return f"an explicit {model} of {depth} layer{'s' * (depth > 1)}"
    what = "the equilibrium" if not depth else f"{depth} explicit application{'s' * (depth > 1)}"
    return f"{what} {'with' if config['jacobian_penalty'] else 'without'} Jacobian penalty"


def train(
    build: Callable[[], Experiment],
    config: Mapping[str, Any],
    workdir: str,
    strategy: tf.distribute.Strategy | None = None,
) -> dict[str, Any] | None:
    """Trains to the end, resuming from workdir, and returns the metrics.

    Writes to workdir: config.json, environment.json, checkpoints/, tensorboard/, curves.jsonl,
    model.keras, metrics.json and the experiment's own files. A finished run is not trained again, but
    one with fewer steps continues from its last checkpoint, and one with other flags of the test
    (--test_…) is tested again. With several workers the chief writes;
    workdir must be a folder that all of them can access.

    Args:
        build: makes the experiment; called in the strategy's scope, with Keras's seed set.
        config: values of the flags, and other entries that identify the run.
        strategy: from `make_strategy`. Default: one device.

    Returns:
        The contents of metrics.json; None in a worker that is not the chief.

    Raises:
        ValueError: if workdir holds a run of another configuration.
        OSError: if workdir cannot be written.
        Preempted: if the run was asked to end, or another worker was lost.
    """
    hear_requests()
    strategy = strategy or tf.distribute.get_strategy()
    resumed = check_resumption(workdir, config)
    config = going_on(workdir, config)
    metrics = finished(workdir, config, before_it_existed(config))
    if metrics is not None:
        if is_chief(strategy):
            _record(workdir, config)
        print(
            f"The run in {workdir} has already finished {config['train_steps']} steps. There is "
            "nothing to resume."
        )
        return metrics
    with other_worker_lost(several_workers(strategy)):
        if is_chief(strategy):
            with locked(workdir):
                return _train(build, config, workdir, strategy, resumed)
        with tempfile.TemporaryDirectory(prefix="tfdeq-worker-") as own:
            experiment = _build(build, config, strategy)
            make_trainer(config, own, experiment, strategy, read_from=workdir).train()
    return None


def check_resumption(workdir: str, config: Mapping[str, Any]) -> bool:
    """Returns whether workdir holds a run of this configuration; see `check_configuration`."""
    return check_configuration(workdir, config, may_differ(config), before_it_existed(config))


def make_trainer(
    config: Mapping[str, Any],
    workdir: str,
    experiment: Experiment,
    strategy: tf.distribute.Strategy | None = None,
    read_from: str | None = None,
) -> Trainer:
    """Returns the training loop of an experiment; see `Trainer`."""
    schedule = _schedule(config)
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        optimizer = make_optimizer(config, schedule, adam_layers=experiment.output_layers)
    return Trainer(experiment.task, config, workdir, optimizer, schedule.scale, strategy, read_from)


def dry_run(
    build: Callable[[], Experiment],
    config: Mapping[str, Any],
    strategy: tf.distribute.Strategy | None = None,
) -> list[str]:
    """Returns a description of a run, line by line, after one step of it in a temporary folder."""
    strategy = strategy or tf.distribute.get_strategy()
    experiment = _build(build, config, strategy)
    with tempfile.TemporaryDirectory(prefix="tfdeq-dry-run-") as folder:
        trainer = make_trainer(config, folder, experiment, strategy)
        step = rehearsal.one_step(trainer, config)
        memory = rehearsal.memory_lines(experiment.task.model, trainer.optimizer)
    replicas = strategy.num_replicas_in_sync
    return [
        f"A dry run of {describe(config)}; nothing is kept.",
        *rehearsal.parameter_lines(experiment.task.model),
        *memory,
        f"Replicas: {replicas}, each with {config['batch_size'] // replicas} examples a step",
        *rehearsal.schedule_lines(config, _schedule(config)),
        *step,
    ]


def _train(
    build: Callable[[], Experiment],
    config: Mapping[str, Any],
    workdir: str,
    strategy: tf.distribute.Strategy,
    resumed: bool,
) -> dict[str, Any]:
    experiment = _build(build, config, strategy)
    if experiment.fingerprint is not None:
        config = {**config, FINGERPRINT: experiment.fingerprint}
        check_resumption(workdir, config)
    model = experiment.task.model
    trainer = make_trainer(config, workdir, experiment, strategy)
    said = _start(workdir, config, resumed)
    # Written only now, so that settings that the model refuses do not claim the folder.
    write_json(os.path.join(workdir, "config.json"), config)
    environment.record(workdir)
    print(said, flush=True)
    experiment.before(workdir)
    curves = trainer.train()
    curves["replicas"] = strategy.num_replicas_in_sync
    test = experiment.test()
    write_atomically(os.path.join(workdir, "model.keras"), model.save)
    metrics = {
        "config": config,
        "score": experiment.task.score._asdict(),
        "kind": experiment.kind,
        "parameters": model.count_params(),
        "train": curves,
        "test": test,
    }
    experiment.after(workdir, metrics, trainer.progress.writer)
    trainer.progress.close()
    write_json(os.path.join(workdir, "metrics.json"), metrics)
    return metrics


def _start(workdir: str, config: Mapping[str, Any], resumed: bool) -> str:
    """Returns the lines that a run prints at its start."""
    known = (read_json(os.path.join(workdir, "config.json")) or {}).get("train_steps")
    further = ""
    if resumed and known != config["train_steps"]:
        further = f", to {config['train_steps']:,} steps instead of {known:,}"
    elif resumed and steps_made(workdir) == known:
        further = ", to test it: it has made all its steps"
    return f"{'Resuming' if resumed else 'Starting'} {describe(config)} in {workdir}{further}."


def _record(workdir: str, config: Mapping[str, Any]) -> None:
    """Updates the place of the text in a finished run's config.json, where export programs look."""
    path = os.path.join(workdir, "config.json")
    known = read_json(path)
    if any(known.get(name) != config.get(name) for name in ("train_steps", *PLACES_OF_DATA)):
        with locked(workdir):
            write_json(path, {**known, **config})


def _build(
    build: Callable[[], Experiment], config: Mapping[str, Any], strategy: tf.distribute.Strategy
) -> Experiment:
    keras.utils.set_random_seed(config["seed"])
    with strategy.scope():
        return build()


def _schedule(config: Mapping[str, Any]) -> Any:
    steps = config["train_steps"]
    # A run that is made longer has already warmed up.
    warmup_share = config["warmup_share"] * config.get(SHORTEST, steps) / steps
    return learning_rate_schedule(config["learning_rate"], steps, warmup_share, config["schedule"])
