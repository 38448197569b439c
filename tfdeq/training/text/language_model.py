"""Language models from a configuration: their experiment, alone or with baselines."""

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeq.data.segments import training_segments
from tfdeq.data.token_data import TokenData
from tfdeq.data.windows import training_windows
from tfdeq.models.token_model import TokenModel
from tfdeq.programs.processes import Runs
from tfdeq.programs.workdir import read_json, write_atomically, write_json
from tfdeq.runs import kind
from tfdeq.training import experiment
from tfdeq.training.evaluation import Evaluator
from tfdeq.training.experiment import Experiment
from tfdeq.training.flags.flag_uses import used
from tfdeq.training.records import event_files
from tfdeq.training.records.resumption import finished
from tfdeq.training.report import pictures, residual_trace
from tfdeq.training.report.residual_trace import ResidualTrace
from tfdeq.training.task import Score, Task, score_of
from tfdeq.training.text.evaluation import NATS, figures_of, segment_evaluator, token_evaluator
from tfdeq.training.text.models import make_loss, make_model, radius_of


def make_experiment(config: Mapping[str, Any], data: TokenData) -> Experiment:
    """Returns the experiment of a configuration, with its untrained model."""
    model = make_model(config, data.vocabulary_size)
    if config["carry_memory"] and not model.remembers:
        raise ValueError(
            f"--carry_memory needs a model with a carried memory; received --model={config['model']} "
            f"--attention_span={config['attention_span']}. For a transformer, set the number of "
            "positions that it sees, for example --attention_span=128."
        )
    evaluator = _evaluator(config, model, data.validation, data.unit, config["evaluation_windows"])
    test = _evaluator(config, model, data.test, data.unit, config["test_windows"] or None)

    trace = ResidualTrace(None if config["depth"] else evaluator.residual_trace)

    def after(workdir, metrics, writer):
        residuals = trace.after(workdir)
        if data.vocabulary is not None:
            _write_vocabulary(os.path.join(workdir, "vocabulary.txt"), data.vocabulary)
        pictures.draw_all(workdir, metrics, {}, residuals, writer)

    def tested():
        print("Testing the trained model on the test text.", flush=True)  # may take minutes
        return test.results()

    task = _task(config, model, data, evaluator.evaluate)
    return Experiment(task, tested, ["readout"], trace.before, after, kind.language_model())


def train(
    config: Mapping[str, Any],
    workdir: str,
    data: TokenData,
    strategy: tf.distribute.Strategy | None = None,
) -> dict[str, Any] | None:
    """Trains one model to the end, resuming from workdir, and returns its metrics.

    In addition to the files of every trainer, it writes residuals.json and pictures to workdir, and
    vocabulary.txt for words.

    Args:
        config: values of the flags. data: the token streams. strategy: see `make_strategy`.

    Raises:
        ValueError: if workdir holds a run with another configuration or other data.
    """
    config = _with_fingerprint(config, data)
    return experiment.train(lambda: make_experiment(config, data), config, workdir, strategy)


def baseline_configurations(config: Mapping[str, Any], depth: int) -> list[dict[str, Any]]:
    """Returns configurations of `depth` explicit applications of the cell, without and with penalty.

    With the Jacobian penalty, the recurrent weights start at full scale, because the penalty has no
    effect if the cell does not depend on the state.
    """
    plain = {**config, "depth": depth, "jacobian_penalty": 0.0}
    if not config["jacobian_penalty"]:
        return [plain]
    return [plain, {**config, "depth": depth, "recurrent_scale": 1.0}]


def train_with_baselines(
    config: Mapping[str, Any],
    workdir: str,
    data: TokenData,
    program: str,
    program_flags: Mapping[str, Any],
    strategy: tf.distribute.Strategy | None = None,
) -> dict[str, Any]:
    """Trains the model and, in another process, one application for as many steps; returns metrics.

    metrics.json has the better baseline as `baseline`, and all of them as `baselines`.

    Args:
        program: the program that trains the baselines, for example "trainers.language_model".
        program_flags: its additional flags, which are not part of the configuration.
    """
    experiment.check_resumption(workdir, _with_fingerprint(config, data))
    folders = {}
    for baseline in baseline_configurations(config, depth=1):
        folder = os.path.join(
            workdir, "baselines", f"depth_1_penalty_{baseline['jacobian_penalty']:g}"
        )
        folders[experiment.describe(baseline)] = folder, used({**program_flags, **baseline})
    missing = [run for run in folders.values() if finished(run[0], config) is None]
    # On a GPU, whose memory one process fills, the baselines are trained after the model.
    at_once = not tf.config.list_physical_devices("GPU")
    with Runs(program, parallel=2) as runs:
        for folder, values in missing if at_once else ():
            runs.start(folder, values)
        metrics = train(config, workdir, data, strategy)
        for folder, values in () if at_once else missing:
            runs.start(folder, values)
        if missing:
            print("Waiting for the baselines.", flush=True)
        runs.wait()
    if "baseline" not in metrics:
        results = {
            name: read_json(os.path.join(folder, "metrics.json"))
            for name, (folder, _) in folders.items()
        }
        _add_baselines(workdir, metrics, results)
    return metrics


def _with_fingerprint(config: Mapping[str, Any], data: TokenData) -> dict[str, Any]:
    return {**config, "data_fingerprint": data.fingerprint}


def _evaluator(
    config, model: TokenModel, tokens: np.ndarray, unit: str, windows: int | None
) -> Evaluator:
    """Returns the evaluator of validation or test: on all windows with a carried memory or windows=None."""
    compiled = config["jit_compile"]
    if config["carry_memory"]:
        length, rows = config["sequence_length"], config["evaluation_rows"]
        return segment_evaluator(model, tokens, unit, length, rows, compiled)
    return token_evaluator(model, tokens, unit, windows=windows, jit_compile=compiled)


def _task(config, model: TokenModel, data: TokenData, evaluate) -> Task:
    make_batches = training_segments if config["carry_memory"] else training_windows

    def batches(start_step, shard, shards):
        return make_batches(
            data.train,
            sequence_length=config["sequence_length"],
            batch_size=config["batch_size"],
            seed=config["seed"],
            start_step=start_step,
            shard=shard,
            shards=shards,
        )

    def display(row):
        return {"loss": row["loss"], **figures_of(data.unit)({NATS: row["loss"]})}

    return Task(
        model=model,
        loss=make_loss(model, config),
        batches=batches,
        evaluate=evaluate,
        display=display,
        items_per_step=config["batch_size"] * config["sequence_length"],
        equilibria=[] if config["depth"] else [model.equilibrium],
        spectral_radius=None if config["depth"] else radius_of(model),
        carried=model.initial_memory if config["carry_memory"] else None,
        uniform_loss=math.log(data.vocabulary_size),
        score=Score(f"bits_per_{data.unit}", f"bits per {data.unit}"),
    )


def _add_baselines(workdir: str, metrics: dict[str, Any], baselines: Mapping[str, Any]) -> None:
    """Adds the better baseline to metrics.json, and all of them to the pictures."""
    key = score_of(metrics).name
    name = min(baselines, key=lambda name: baselines[name]["test"][key])
    metrics["baseline"] = {"name": name, **baselines[name]["test"]}
    metrics["baselines"] = {name: value["test"] for name, value in baselines.items()}
    residuals = read_json(residual_trace.path_in(workdir)) or {}
    curves = {name: value["train"] for name, value in baselines.items()}
    event_files.drop_pictures(os.path.join(workdir, "tensorboard"))
    pictures.draw_again(workdir, metrics, curves, residuals)
    # Written last: until then, a restart draws the pictures again.
    write_json(os.path.join(workdir, "metrics.json"), metrics)


def _write_vocabulary(path: str, vocabulary: tuple[str, ...]) -> None:
    def write(name):
        with open(name, "w", encoding="utf-8") as file:
            file.writelines(f"{word}\n" for word in vocabulary)

    write_atomically(path, write)
