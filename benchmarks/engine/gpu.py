"""The engine on one GPU, in at most ten minutes: training steps beside the lower bound, and their memory.

python -m benchmarks.engine.gpu --document=docs/gpu_benchmarks.md [--results=benchmarks/results/gpu.json]

Cases, cells and lower bound are those of `benchmarks.engine.speed`. Every solver makes as many evaluations
forward and backward as the bound, compiled by XLA and as a graph. Variants are compiled one after another
and then timed alternately, so that all of them see the same state of the device. The figures are written
after each case, so a run that is ended keeps what it has. A case begins only while there is time for it.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from absl import flags

from benchmarks.engine import engine_cases
from benchmarks.engine.peers.tfdeq_worker import TfdeqWorker
from benchmarks.engine.speed import FIXED_STEPS, variant
from benchmarks.results.tables import markdown_table
from tfdeq.programs import program
from tfdeq.programs.workdir import write_json

FLAGS = flags.FLAGS

_BOUNDS = ("bound", "bound, graph")
_HEAD = """# The engine on a GPU

Made by `python -m benchmarks.engine.gpu --document=docs/gpu_benchmarks.md`.

A training step is the forward solve, the loss, and the gradients of all weights and of the input, without an
optimiser: {steps} evaluations forward and {steps} products backward. The lower bound has the same evaluations
and products in a loop without a solver. The memory is the peak of a step, weights and input included.

"""
_NOT_RUN = "Not yet run: no GPU was at hand.\n"
_NO_TIME = "Not measured: there was no time left. Run the program again with `--cases`.\n"


def define_flags() -> None:
    """Defines the program's flags; modules that import it may have flags of the same names."""
    flags.DEFINE_string("device", "GPU:0", "Device that is measured. Default: GPU:0.")
    flags.DEFINE_float("minutes", 9.0, "A case that starts later is left out. Default: 9.", 0.0)
    flags.DEFINE_integer("rounds", 15, "Timed steps of each variant. Default: 15.", 1)
    flags.DEFINE_list("cases", list(engine_cases.CASES), "Cases to measure. Default: all.")
    flags.DEFINE_list("solvers", list(TfdeqWorker.solvers), "Solvers to measure. Default: all.")
    flags.DEFINE_bool("quick", False, "Cells of a few units: shows that the program works.")
    flags.DEFINE_string("document", None, "Markdown file to write the tables to.")
    flags.DEFINE_string("results", None, "JSON file for the figures.")


def measure(
    worker: TfdeqWorker,
    case: Mapping[str, Any],
    solvers: Sequence[str],
    device: str,
    rounds: int,
) -> list[dict[str, Any]]:
    """Returns a row for each solver and bound: seconds of each step, of the first, and peak bytes."""
    with tf.device(device):
        worker.arrays, worker.case = engine_cases.make_arrays(case), dict(case)
        worker.load()
        rows, steps = [], []
        for solver in (*_BOUNDS, *solvers):
            began = time.perf_counter()
            step = worker.build(variant(solver, "fixed"))
            step()
            rows.append({"variant": solver, "first_seconds": time.perf_counter() - began})
            rows[-1]["peak_bytes"] = _peak_bytes(step, device)
            steps.append(step)
        seconds = [[] for _ in steps]
        for _ in range(rounds):
            for taken, step in zip(seconds, steps, strict=True):
                began = time.perf_counter()
                step()
                taken.append(time.perf_counter() - began)
    return [{**row, "seconds": taken} for row, taken in zip(rows, seconds, strict=True)]


def _peak_bytes(step: Callable[[], Any], device: str) -> int | None:
    """Peak memory of one step; None where TensorFlow does not know: on a CPU."""
    if not device.startswith("GPU"):
        return None
    tf.config.experimental.reset_memory_stats(device)
    step()
    return tf.config.experimental.get_memory_info(device)["peak"]


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows of a case as a Markdown table, the fastest first."""
    medians = {row["variant"]: statistics.median(row["seconds"]) for row in rows}
    bound = min(medians[name] for name in _BOUNDS)
    cells = []
    for row in sorted(rows, key=lambda row: medians[row["variant"]]):
        name = row["variant"].replace("_", " ").replace("bound", "lower bound")
        peak = row["peak_bytes"]
        cells.append(
            (
                name if row["variant"] in _BOUNDS else f"**tfdeq {name}**",
                f"{1e3 * medians[row['variant']]:.2f} ({1e3 * min(row['seconds']):.2f})",
                f"{medians[row['variant']] / bound:.2f}",
                f"{row['first_seconds']:.1f}",
                "" if peak is None else f"{peak / 2**20:.0f}",
            )
        )
    columns = ("", "ms a step (fastest)", "/ lower bound", "first step, s", "peak MiB")
    return markdown_table(columns, cells)


def document(results: Mapping[str, Any] | None) -> str:
    """Returns the page; results: None if nothing was run."""
    text = _HEAD.format(steps=FIXED_STEPS)
    if results is None:
        return text + _NOT_RUN
    text += f"{results['device']}; TensorFlow {tf.__version__}.\n"
    for name, rows in results["cases"].items():
        sizes = results["sizes"][name]
        text += f"\n## {name.replace('_', ' ')}: {sizes}\n\n{table(rows) if rows else _NO_TIME}"
    return text


def main() -> None:
    kind, _, number = FLAGS.device.partition(":")
    found = tf.config.list_physical_devices(kind)
    if not number.isdigit() or int(number) >= len(found):
        seen = ", ".join(
            device.name.split(":", 1)[1] for device in tf.config.list_physical_devices()
        )
        raise ValueError(
            f"There is no device {FLAGS.device!r}; TensorFlow sees {seen}. Run this program on a machine "
            "with a GPU, or name another device with --device."
        )
    cases = engine_cases.QUICK_CASES if FLAGS.quick else engine_cases.CASES
    for name, known in (("cases", cases), ("solvers", TfdeqWorker.solvers)):
        unknown = sorted(set(FLAGS[name].value) - set(known))
        if unknown:
            raise ValueError(f"No such {name}: {', '.join(unknown)}. Known: {', '.join(known)}.")
    details = tf.config.experimental.get_device_details(found[int(number)])
    results: dict[str, Any] = {"device": details.get("device_name", FLAGS.device)}
    results["sizes"] = {name: engine_cases.describe(cases[name]) for name in FLAGS.cases}
    results["cases"] = dict.fromkeys(FLAGS.cases)
    # All cores: what they compile and launch is not what is measured.
    os.environ.setdefault("BENCHMARK_THREADS", str(os.cpu_count()))
    worker, began = TfdeqWorker(), time.monotonic()
    for name in FLAGS.cases:
        if time.monotonic() - began < 60 * FLAGS.minutes:
            results["cases"][name] = measure(
                worker, cases[name], FLAGS.solvers, FLAGS.device, FLAGS.rounds
            )
            print(f"{name}\n\n{table(results['cases'][name])}", flush=True)
        if FLAGS.results:
            write_json(FLAGS.results, results)
        if FLAGS.document:
            with open(FLAGS.document, "w", encoding="utf-8") as file:
                file.write(document(results))


if __name__ == "__main__":
    define_flags()
    program.run(main)
