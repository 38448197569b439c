"""The cost of solves by blocks and of plain iteration: python -m benchmarks.training.blocks --workdir=DIR.

For a run of trainers.reasoning on prefix sums, it solves strings of several lengths in both ways,
alternately.
"""

import os
import statistics
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import tfdeq.models  # noqa: F401  Keras finds the model by name
from tfdeq.data.puzzles import get
from tfdeq.models import Reasoner
from tfdeq.programs import program
from tfdeq.programs.workdir import write_json

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
flags.DEFINE_list("lengths", ["512", "2048", "8192"], "Places of the strings.")
flags.DEFINE_integer("strings", 4, "Strings that are solved together.")
flags.DEFINE_integer("rounds", 3, "Rounds; in each both ways once.")
flags.DEFINE_string("results", None, "JSON file for the figures. Default: printed alone.")
_SEED = 5


def solver_of(model: Reasoner, block: int | None, steps: int) -> Callable[..., tuple]:
    """Returns (puzzles) -> (logits, residual, steps), solved by blocks or, with None, as a whole."""
    config = {**model.get_config(), "block": block}
    made = Reasoner.from_config(config)
    made.build((None, None))
    made.set_weights(model.get_weights())

    @tf.function(autograph=False)
    def solve(puzzles):
        logits, solution = made(puzzles, max_steps=steps, return_solution=True)
        return logits, solution.residual, solution.steps

    return solve


def main() -> None:
    model = keras.models.load_model(os.path.join(FLAGS.workdir, "model.keras"), compile=False)
    block = model.equilibrium.block or 64
    results = {}
    for length in map(int, FLAGS.lengths):
        puzzles, targets = get("prefix_sums").make(FLAGS.strings, length, _SEED, None)
        puzzles = tf.constant(puzzles)
        ways = {
            name: solver_of(model, size, steps)
            for name, size, steps in (("blocks", block, 8 * length), ("whole", None, 2 * length))
        }
        seconds = {name: [] for name in ways}
        found = {name: way(puzzles) for name, way in ways.items()}  # traces
        for _ in range(FLAGS.rounds):
            for name, way in ways.items():
                started = time.perf_counter()
                found[name] = [part.numpy() for part in way(puzzles)]
                seconds[name].append((time.perf_counter() - started) / FLAGS.strings)
        row = {
            name: {
                "seconds_per_string": statistics.median(seconds[name]),
                "exact": float((np.argmax(logits, -1) == targets).all(1).mean()),
                "residual": float(np.max(residual)),
                "steps": float(np.mean(steps)),
            }
            for name, (logits, residual, steps) in found.items()
        }
        ratio = row["blocks"]["seconds_per_string"] / row["whole"]["seconds_per_string"]
        results[str(length)] = {**row, "ratio": ratio}
        print(length, results[str(length)], flush=True)
    if FLAGS.results:
        write_json(FLAGS.results, results)


if __name__ == "__main__":
    program.run(main)
