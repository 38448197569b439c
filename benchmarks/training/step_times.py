"""The overhead of the training loop, and the gain from more devices.

python -m benchmarks.training.step_times --workdir=runs/training [--results=benchmarks/results/training.json]
    [--document=docs/training_benchmarks.md]

Overhead: the real loop (batches, reports, TensorBoard, timed steps) against a bare compiled step of the
same model on one fixed batch, called in a Python loop. The two alternate after each row of the curves.
Scaling: the real program with every --strategy that this machine can run, with the same global batch.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tensorflow as tf
from absl import flags

from benchmarks.results.tables import markdown_table
from tfdeq.data.text.registry import load
from tfdeq.data.token_data import TokenData
from tfdeq.programs import program
from tfdeq.programs.processes import flag_text
from tfdeq.programs.workdir import read_json, write_json
from tfdeq.training import experiment
from tfdeq.training.flags.flag_uses import used
from tfdeq.training.flags.shared import check_uses, configuration
from tfdeq.training.schedule import settings_at
from tfdeq.training.steps.optimizers import learning_rate_schedule, make_optimizer
from tfdeq.training.task import CallSettings
from tfdeq.training.text import language_model
from trainers.language_model import CONFIGURATION_FLAGS

FLAGS = flags.FLAGS

_NEVER = 10**9
_STRATEGIES = {
    "one device": (1, ()),
    "two logical devices": (1, ("--strategy=mirrored", "--logical_devices=2")),
    "two processes": (2, ("--strategy=multi_worker",)),
    "four processes": (4, ("--strategy=multi_worker",)),
}


def overhead_configuration(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Returns the flags' configuration with equal steps: the equilibrium at its full budget."""
    return {
        **config,
        "train_steps": (rows + 2) * config["log_every"],
        "training_max_steps": config["max_steps"],
        "tolerance": 1e-12,
        "shallow_share": 0.0,
        "recurrent_scale": 1.0,
        "evaluate_every": _NEVER,
        "checkpoint_every": _NEVER,
        "inspect_every": 0,
    }


def bare_step(config: Mapping[str, Any], data: TokenData) -> Callable[[], None]:
    """Returns a training step of an equal model on one batch, which is a single XLA program."""
    task = language_model.make_experiment(config, data).task
    schedule = learning_rate_schedule(
        config["learning_rate"], config["train_steps"], config["warmup_share"]
    )
    optimizer = make_optimizer(config, schedule, adam_layers=["readout"])
    variables = task.model.trainable_variables
    optimizer.build(variables)
    batch = next(iter(task.batches(0, 0, 1)))

    @tf.function(jit_compile=config["jit_compile"], autograph=False)
    def step(batch, max_steps):
        with tf.GradientTape() as tape:
            loss = task.loss(batch, CallSettings(0, max_steps, training=True), ()).value
            total = tf.add_n([loss, *task.model.losses])
        gradients = tape.gradient(total, variables)
        gradients, _ = tf.clip_by_global_norm(gradients, config["gradient_clip"])
        optimizer.apply(gradients, variables)

    budget = tf.constant(config["max_steps"])
    return lambda: step(batch, budget)


def measure_overhead(
    config: Mapping[str, Any], data: TokenData, workdir: str, rows: int
) -> dict[str, float]:
    """Returns the median seconds per step of the loop and of the bare step, and their ratio."""
    config = overhead_configuration(config, rows)
    step = bare_step(config, data)
    step()
    loop_seconds, bare_seconds = [], []
    started = [time.perf_counter()]

    def at_row(row):
        """Called by the loop at each row of the curves: times the loop, then the bare step."""
        loop_seconds.append((time.perf_counter() - started[0]) / config["log_every"])
        before = time.perf_counter()
        for _ in range(config["log_every"]):
            step()
        bare_seconds.append((time.perf_counter() - before) / config["log_every"])
        started[0] = time.perf_counter()
        return {}

    found = language_model.make_experiment(config, data)
    # Without an evaluation, which belongs to no step.
    unmeasured = {found.task.score.name: 0.0}
    found = found._replace(
        task=found.task._replace(display=at_row, evaluate=lambda: dict(unmeasured))
    )
    trainer = experiment.make_trainer(config, workdir, found)
    columns = trainer.train()
    # The first row includes compilation, the last one the final checkpoint and evaluation.
    pairs = list(zip(loop_seconds, bare_seconds, strict=True))[1:-1]
    loop, bare, ratio = (
        statistics.median(values) for values in zip(*((a, b, b / a) for a, b in pairs), strict=True)
    )
    batches, settings = trainer.batches(0), settings_at(config["train_steps"] - 1, config)
    # The first of these is omitted: after calls of several steps, a single step is first compiled.
    timed = [trainer.step.run_timed(batches, settings) for _ in range(13)][1:]
    # The fastest, because a few consecutive steps may all fall into a slow moment of the machine.
    fastest = min(timed, key=lambda row: row["solve"] + row["update"])
    split = {name: fastest[name] for name in fastest}
    waited = [value for value in columns.get("data_seconds", []) if value]
    if waited:
        split["data"] = statistics.median(waited)
    return {
        "steps_per_call": config["steps_per_call"],
        "loop_seconds": loop,
        "bare_seconds": bare,
        "ratio": ratio,
        "smallest_ratio": min(b / a for a, b in pairs),
        **{f"{name}_seconds": value for name, value in split.items()},
    }


def measure_scaling(
    workdir: str, config: Mapping[str, Any], steps: int
) -> dict[str, dict[str, float]]:
    """Returns the median seconds per step of the real program for every strategy."""
    results = {}
    settings = used({**config, "evaluation_windows": 16})
    arguments = [f"--{n}={flag_text(value)}" for n, value in settings.items() if value is not None]
    for name, (processes, strategy) in _STRATEGIES.items():
        folder = os.path.join(workdir, name.replace(" ", "_"))
        own = [f"--train_steps={steps}", f"--workdir={folder}", "--log_every=5", *strategy]
        own += [f"--evaluate_every={_NEVER}", "--inspect_every=0", "--test_windows=16"]
        _run_together([[*arguments, *own]] * processes)
        train = (read_json(os.path.join(folder, "metrics.json")) or {})["train"]
        tokens = [value for value in train["tokens_per_second"] if value]
        results[name] = {
            "processes": processes,
            "replicas": train["replicas"],
            # The later half, in which the equilibrium is solved and everything is compiled.
            "tokens_per_second": statistics.median(tokens[len(tokens) // 2 :]),
            "last_loss": [value for value in train["loss"] if value is not None][-1],
        }
    return results


def _run_together(commands: list[list[str]]) -> None:
    """Runs the trainer in a number of processes, as workers on the loopback device if there are several."""
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(len(commands))]
    processes = []
    for index, command in enumerate(commands):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "trainers.language_model", *command],
                env={**os.environ, "TF_CONFIG": json.dumps(task)},
                stdout=subprocess.DEVNULL,
            )
        )
    if any([process.wait() for process in processes]):
        raise ValueError(f"{commands[0]} ended with an error; its output says why.")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _overhead_table(rows: Iterable[Mapping[str, Any]]) -> str:
    columns = (
        *("steps a call", "bare step, ms", "loop, ms", "ratio", "smallest row"),
        *("waiting for data, ms", "solve, ms", "update, ms"),
    )
    cells = [
        (
            row["steps_per_call"],
            *(f"{1e3 * row[f'{name}_seconds']:.1f}" for name in ("bare", "loop")),
            *(f"{row[name]:.3f}" for name in ("ratio", "smallest_ratio")),
            *(f"{1e3 * row[f'{name}_seconds']:.2f}" for name in ("data", "solve", "update")),
        )
        for row in rows
    ]
    return markdown_table(columns, cells)


def _scaling_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    columns = ("devices", "replicas", "tokens per second", "to one device", "loss of the last row")
    first = next(iter(rows.values()))
    cells = [
        (
            *(name, row["replicas"], f"{row['tokens_per_second']:,.0f}"),
            f"{row['tokens_per_second'] / first['tokens_per_second']:.2f}",
            f"{row['last_loss']:.6f}",
        )
        for name, row in rows.items()
    ]
    return markdown_table(columns, cells)


def document(results: Mapping[str, Any]) -> str:
    """Returns the tables as Markdown."""
    lines = [
        "# What training costs beside its steps",
        "",
        "Made by `python -m benchmarks.training.step_times --workdir=runs/training "
        f"--document=docs/training_benchmarks.md`; {results['machine']}; the quickstart's model and batch.",
        "",
        "## The loop's overhead",
        "",
        "Compares the loop with everything on (tf.data, skipping, clipping, reports, TensorBoard) with a "
        "bare compiled step of the same model on one batch. The two alternate; the figures are medians "
        "over the rows. The ratio is the loop's steps per second over the bare step's. The wait for data "
        "is the median of all steps; solve and update are those of the fastest of twelve steps. Single "
        "rows vary with the machine's load, in the loop and in the bare step.",
        "",
        _overhead_table(results["overhead"]),
        "## More devices, the same batch",
        "",
        _scaling_table(results["scaling"]),
        f"On {os.cpu_count()} processor cores this table cannot show a speed-up: one device already uses "
        "all cores, so more replicas share them and add overhead. The table shows that every strategy "
        "trains the same model, and what the reduction and a second process cost. Speed-up on GPUs was "
        "not measured.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    check_uses()
    config = configuration(CONFIGURATION_FLAGS)
    data = load(
        FLAGS.dataset, data_dir=FLAGS.data_dir, files=FLAGS.files, prepared_dir=FLAGS.prepared_dir
    )
    results: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, TensorFlow {tf.__version__}",
        "overhead": [],
    }
    for steps_per_call in (1, 10):
        folder = os.path.join(FLAGS.workdir, f"overhead_{steps_per_call}")
        varied = {**config, "steps_per_call": steps_per_call}
        results["overhead"].append(measure_overhead(varied, data, folder, FLAGS.rows))
        print(results["overhead"][-1], flush=True)
    results["scaling"] = measure_scaling(FLAGS.workdir, config, FLAGS.scaling_steps)
    text = document(results)
    print(text)
    if FLAGS.results:
        write_json(FLAGS.results, results)
    if FLAGS.document:
        with open(FLAGS.document, "w", encoding="utf-8") as file:
            file.write(text)


def define_flags() -> None:
    """Defines the program's flags; modules that import this one may have flags with the same names."""
    flags.DEFINE_integer("rows", 8, "Rows of the curves that the overhead is measured on.")
    flags.DEFINE_integer("scaling_steps", 60, "Steps of each run of the scaling table.")
    flags.DEFINE_string("results", None, "JSON file for the figures.")
    flags.DEFINE_string("document", None, "Markdown file to write the tables to.")


if __name__ == "__main__":
    define_flags()
    program.run(main)
