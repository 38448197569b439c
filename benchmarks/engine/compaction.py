"""The cost of one hard sample in a batch, with and without compaction.

python -m benchmarks.engine.compaction [--results=benchmarks/results/compaction.json]

31 samples of the Transformer cell need 5 evaluations and one needs 30. Three variants are timed
alternately: the solve in which samples leave the batch (`batched_args`), the loop that keeps all
samples to the end, and the easy and the hard samples as two separate batches, which is a lower bound.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import flags

import tfdeq
from benchmarks.engine import engine_cases
from benchmarks.engine.peers.tfdeq_worker import apply_cell, inject
from tfdeq.programs import program
from tfdeq.programs.workdir import write_json

FLAGS = flags.FLAGS

EASY, HARD = 31, 1
EASY_STEPS, HARD_STEPS = 5, 30


def make_variants(length: int, width: int) -> dict[str, Callable[[], tuple[tf.Tensor, tf.Tensor]]]:
    """Returns name -> a function that returns states and evaluations of all samples."""
    case = {
        "kind": "transformer",
        "shape": [EASY + HARD, length, width],
        "heads": 8,
        "hidden": 4 * width,
        "gain": 0.9,
    }
    arrays = {k: tf.constant(v) for k, v in engine_cases.make_arrays(case).items()}
    weights = {k[2:]: v for k, v in arrays.items() if k[:2] == "w/"}
    # No sample converges within its budget, so only the budgets determine which samples are hard.
    solver = tfdeq.Anderson(HARD_STEPS, tolerance=1e-30)
    budgets = tf.constant([EASY_STEPS] * EASY + [HARD_STEPS] * HARD)

    def cell(z, injected, x, weights):
        return apply_cell(case, z, injected, x, weights)

    def solve(x, budgets, batched_args):
        args = (inject("transformer", weights, x), x, weights)
        solution = tfdeq.fixed_point(
            cell, tf.zeros_like(x), args, solver, max_steps=budgets, batched_args=batched_args
        )
        return solution.z, solution.steps

    # For any batch size, so that one graph serves the whole batch and its parts.
    signature = [
        tf.TensorSpec([None, length, width], tf.float32),
        tf.TensorSpec([None], tf.int32),
    ]
    leaving, staying = (
        tf.function(
            lambda x, budgets, rows=rows: solve(x, budgets, rows),
            autograph=False,
            input_signature=signature,
        )
        for rows in ([0, 1], None)
    )
    x = arrays["x"]

    def apart():
        parts = [staying(x[:EASY], budgets[:EASY]), staying(x[EASY:], budgets[EASY:])]
        return tuple(tf.concat(leaves, axis=0) for leaves in zip(*parts, strict=True))

    return {
        "samples leave": lambda: leaving(x, budgets),
        "samples stay": lambda: staying(x, budgets),
        "two batches": apart,
    }


def measure(length: int, width: int, rounds: int) -> dict[str, dict[str, float]]:
    """Returns name -> median seconds, and the ratio to the loop that keeps all samples to the end.

    Raises:
        ValueError: if the variants' answers differ by more than float32 rounding.
    """
    variants = make_variants(length, width)
    reference, steps = variants["samples stay"]()
    for name, run in variants.items():
        z, own_steps = run()
        difference = float(tf.norm(z - reference) / tf.norm(reference))
        if difference > 1e-5 or not np.array_equal(own_steps, steps):
            raise ValueError(
                f"{name} answers differently: by {difference:.1e} of the states' norm."
            )
    seconds = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            start = time.perf_counter()
            run()[0].numpy()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        name: {"median_seconds": value, "ratio": value / medians["samples stay"]}
        for name, value in medians.items()
    }


def main() -> None:
    result = measure(FLAGS.length, FLAGS.width, FLAGS.rounds)
    for name, row in result.items():
        print(f"{name}: {row['median_seconds']:.4g} s, {row['ratio']:.3f} of the plain loop")
    if FLAGS.results:
        setting = {"length": FLAGS.length, "width": FLAGS.width, "rounds": FLAGS.rounds}
        write_json(FLAGS.results, {**setting, "variants": result})


def define_flags() -> None:
    """Defines the program's flags; modules that import this one may have flags with the same names."""
    flags.DEFINE_integer("length", 64, "Positions of a sample. Default: 64.")
    flags.DEFINE_integer("width", 256, "Size of the state per position. Default: 256.")
    flags.DEFINE_integer("rounds", 7, "Timed rounds, each variant once a round. Default: 7.")
    flags.DEFINE_string("results", None, "JSON file to write the figures to.")


if __name__ == "__main__":
    define_flags()
    program.run(main)
