"""A training step of a softmax over a large vocabulary: the full softmax and `AdaptiveSoftmax`.

python -m benchmarks.training.adaptive_softmax [--results=benchmarks/results/adaptive_softmax.json]

A step computes the loss and the gradients with respect to hidden states and weights, in float32.
Targets are drawn by Zipf's law, p(t) ∝ 1 / (t + 1), like words. The full softmax is the same layer
without cutoffs, that is, one matrix; the adaptive one has cutoffs at 1/16 and 1/4 of the vocabulary.
They are timed alternately, as graphs and compiled by XLA. Memory is the peak of a separate process
during a step, minus the resident memory before it.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks.engine.peers import protocol
from tfdeq.models import AdaptiveSoftmax
from tfdeq.programs import program
from tfdeq.programs.workdir import write_json

FLAGS = flags.FLAGS

WHOLE, ADAPTIVE = "whole", "adaptive"
GRAPH, XLA = "graph", "XLA"

Step = Callable[[tf.Tensor, tf.Tensor], Any]


def cutoffs(vocabulary_size: int) -> tuple[int, int]:
    """Returns the cutoffs of the benchmark."""
    return vocabulary_size // 16, vocabulary_size // 4


def make_batch(vocabulary_size: int, rows: int, width: int, seed: int) -> tuple[Any, Any]:
    """Returns hidden states [rows, width] of unit scale, and targets [rows] by Zipf's law."""
    random = np.random.default_rng(seed)
    p = 1.0 / np.arange(1, vocabulary_size + 1)
    targets = random.choice(vocabulary_size, size=rows, p=p / p.sum())
    hidden = random.normal(size=(rows, width)).astype(np.float32)
    return tf.constant(hidden), tf.constant(targets, tf.int32)


def make_step(kind: str, mode: str, vocabulary_size: int, width: int) -> Step:
    """Returns hidden, targets -> loss and gradients.

    Raises:
        ValueError: if the loss is not −log p(target) of the layer's probabilities.
    """
    layer = AdaptiveSoftmax(vocabulary_size, cutoffs(vocabulary_size) if kind == ADAPTIVE else ())
    layer.build((None, width))
    hidden, targets = make_batch(vocabulary_size, 8, width, seed=0)
    expected = -tf.gather(layer(hidden), targets, axis=-1, batch_dims=1)
    difference = float(tf.reduce_max(tf.abs(layer.loss(hidden, targets) - expected)))
    if difference > 1e-4:
        raise ValueError(f"The loss of the {kind} softmax is off by {difference:.1e} nats.")
    variables = [variable.value for variable in layer.trainable_variables]

    def step(hidden, targets):
        with tf.GradientTape() as tape:
            tape.watch(hidden)
            loss = tf.reduce_mean(layer.loss(hidden, targets))
        return loss, tape.gradient(loss, [hidden, *variables])

    return tf.function(step, jit_compile=mode == XLA, autograph=False)


def measure_seconds(
    vocabulary_size: int, rows: int, width: int, rounds: int
) -> dict[tuple[str, str], float]:
    """Returns (kind, mode) -> median seconds of a step."""
    steps = {
        (kind, mode): make_step(kind, mode, vocabulary_size, width)
        for mode in (GRAPH, XLA)
        for kind in (WHOLE, ADAPTIVE)
    }
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for round_ in range(rounds + 1):
        batch = make_batch(vocabulary_size, rows, width, seed=round_)
        for key, step in steps.items():
            start = time.perf_counter()
            step(*batch)[0].numpy()
            seconds[key].append(time.perf_counter() - start)
    # The first round is omitted, because it traces and compiles.
    return {key: statistics.median(values[1:]) for key, values in seconds.items()}


def measure_peak(kind: str, mode: str, vocabulary_size: int, rows: int, width: int) -> int:
    """Returns the bytes of a step in this process, minus those at rest; Linux only."""
    step = make_step(kind, mode, vocabulary_size, width)
    batch = make_batch(vocabulary_size, rows, width, seed=1)
    step(*batch)
    return min(protocol.peak_beyond_rest(lambda: step(*batch)) for _ in range(3))


def peak_of_a_process(kind: str, mode: str, vocabulary_size: int, rows: int, width: int) -> int:
    """Returns `measure_peak` of a process whose freed memory returns to the system at once.

    Raises:
        ValueError: if the process fails.
    """
    command = [
        sys.executable,
        "-m",
        "benchmarks.training.adaptive_softmax",
        f"--peak_of={kind},{mode}",
    ]
    command += [f"--vocabularies={vocabulary_size}", f"--rows={rows}", f"--width={width}"]
    environment = {**os.environ, **protocol.memory_environment()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return int(done.stdout.split()[-1])


def measure(
    vocabulary_size: int, rows: int, width: int, rounds: int, memory: bool = True
) -> list[dict[str, Any]]:
    """Returns a row of the table for each kind and mode."""
    seconds = measure_seconds(vocabulary_size, rows, width, rounds)
    table = []
    for (kind, mode), value in seconds.items():
        row = {
            "vocabulary_size": vocabulary_size,
            "mode": mode,
            "softmax": kind,
            "median_seconds": value,
            "ratio": value / seconds[WHOLE, mode],
        }
        if memory:
            row["peak_bytes"] = peak_of_a_process(kind, mode, vocabulary_size, rows, width)
        table.append(row)
    return table


def main() -> None:
    sizes = [int(size) for size in FLAGS.vocabularies]
    if FLAGS.peak_of:
        print(measure_peak(*FLAGS.peak_of, sizes[0], FLAGS.rows, FLAGS.width))
        return
    print(f"{'types':>8} {'mode':6} {'softmax':9} {'ms':>8} {'ratio':>6} {'peak MiB':>9}")
    table = []
    for size in sizes:
        for row in measure(size, FLAGS.rows, FLAGS.width, FLAGS.rounds, FLAGS.memory):
            peak = f"{row['peak_bytes'] / 2**20:9.0f}" if FLAGS.memory else f"{'–':>9}"
            print(
                f"{size:8} {row['mode']:6} {row['softmax']:9} {1e3 * row['median_seconds']:8.1f} "
                f"{row['ratio']:6.3f} {peak}",
                flush=True,
            )
            table.append(row)
    if FLAGS.results:
        setting = {"rows": FLAGS.rows, "width": FLAGS.width, "rounds": FLAGS.rounds}
        write_json(FLAGS.results, {**setting, "table": table})


def define_flags() -> None:
    """Defines the program's flags; modules that import this one may have flags with the same names."""
    flags.DEFINE_list(
        "vocabularies",
        ["33000", "268000"],
        "Vocabularies' sizes. Default: those of WikiText-2 and WikiText-103, rounded.",
    )
    flags.DEFINE_integer("rows", 512, "Targets of a step. Default: 512.")
    flags.DEFINE_integer("width", 128, "Of the hidden states, divisible by 16. Default: 128.")
    flags.DEFINE_integer("rounds", 7, "Timed rounds, each step once a round. Default: 7.")
    flags.DEFINE_boolean("memory", True, "Whether to measure memory too, which only Linux can.")
    flags.DEFINE_list("peak_of", None, "Softmax and mode: only print the bytes of its step here.")
    flags.DEFINE_string("results", None, "JSON file to write the figures to.")


if __name__ == "__main__":
    define_flags()
    program.run(main)
