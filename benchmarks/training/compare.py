"""Compares the equilibrium with explicit depth, or with other ways to train one.

python -m benchmarks.training.compare --workdir=runs/compare [flags of trainers.language_model]
python -m benchmarks.training.compare --workdir=runs/recipes --rivals=recipes [flags of the same]

All variants have the equilibrium's training time (with --equal=steps, its steps); see equal_time.py.
"""

import os
import statistics
from collections.abc import Mapping
from typing import Any

import keras
import matplotlib
import tensorflow as tf
from absl import flags

from benchmarks.results.tables import comparison_table
from benchmarks.training import equal_time, variant_times
from benchmarks.training.equal_time import Compared, Comparison
from benchmarks.training.recipes import recipe_variants
from tfdeq.data.text.registry import load
from tfdeq.data.token_data import TokenData
from tfdeq.programs import program
from tfdeq.programs.processes import cores_per_process
from tfdeq.programs.workdir import read_json, write_json
from tfdeq.training.devices.allocator import keep_freed_memory
from tfdeq.training.flags.shared import check_uses, configuration
from tfdeq.training.records.resumption import FINGERPRINT
from tfdeq.training.task import score_of
from tfdeq.training.text import language_model
from trainers.language_model import CONFIGURATION_FLAGS

matplotlib.use("Agg")
from matplotlib import pyplot

FLAGS = flags.FLAGS
flags.DEFINE_enum(
    "rivals", "depths", ["depths", "recipes"], "What to compare with: see --depths, or recipes.py."
)
flags.DEFINE_enum("equal", "time", ["time", "steps"], "What all variants are given as much of.")
flags.DEFINE_list("depths", ["1", "4", "8"], "Explicit applications to compare with.")
equal_time.define_flags()


def variants(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns name -> configuration: the equilibrium, and each depth with and without penalty."""
    if FLAGS.rivals == "recipes":
        return recipe_variants(config)
    result = {"equilibrium": dict(config)}
    for depth in map(int, FLAGS.depths):
        for baseline in language_model.baseline_configurations(config, depth):
            penalty = ", penalty" if baseline["jacobian_penalty"] else ""
            result[f"{depth} explicit{penalty}"] = baseline
    return result


def plan(configs: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Returns name -> configuration with the steps that fit the equilibrium's training time.

    With --equal=steps, they have the steps in the flags.
    """
    configs = {name: equal_time.with_rate(config) for name, config in configs.items()}
    if FLAGS.equal == "steps":
        return configs
    total = configs["equilibrium"]["train_steps"] * seconds["equilibrium"]
    return {
        name: {**config, "train_steps": round(total / seconds[name])}
        for name, config in configs.items()
    }


def comparison() -> Comparison:
    """Returns the comparison that the flags define."""
    flags_ = {name: FLAGS[name].value for name in ("prepared_dir", "tpu", "keep_freed_memory")}
    return Comparison(
        "trainers.language_model", FLAGS.workdir, FLAGS.parallel, flags_, {"test_windows": 1}
    )


def rows(compared: Mapping[str, Compared]) -> dict[str, Any]:
    """Returns run name -> results over the finished seeds."""
    results = {}
    for name, (config, seconds, metrics) in compared.items():
        key = score_of(metrics[0]).name
        bits = [value["test"][key] for value in metrics]
        results[name] = {
            "learning_rate": config["learning_rate"],
            "steps": config["train_steps"],
            "seconds_per_step": seconds,
            "seconds": seconds * config["train_steps"],
            "unit": key,
            "bits": bits,
            "mean_bits": statistics.mean(bits),
            "residual": statistics.mean(value["test"]["residual"] for value in metrics),
            "peak_memory_mib": statistics.median(
                value["train"]["peak_memory_mib"] for value in metrics
            ),
        }
    return results


def draw(results: Mapping[str, Mapping[str, Any]], path: str) -> None:
    """Draws the test bits per byte of every run and seed."""
    figure = pyplot.figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    names = sorted(results, key=lambda name: -results[name]["mean_bits"])
    for height, name in enumerate(names):
        color = "#0072B2" if name == "equilibrium" else "#D55E00"
        row = results[name]
        axes.barh(height, row["mean_bits"], color=color, alpha=0.75)
        axes.plot(row["bits"], [height] * len(row["bits"]), "k|", markersize=12)
    low = min(min(row["bits"]) for row in results.values())
    high = max(max(row["bits"]) for row in results.values())
    axes.set_xlim(low - 0.25 * (high - low) - 0.02, high + 0.02)
    axes.set_yticks(range(len(names)), names)
    unit = next(iter(results.values()))["unit"].replace("_", " ")
    axes.set(xlabel=f"test {unit} (lower is better; bars: mean, ticks: seeds)")
    axes.set_title(f"The equilibrium against other {FLAGS.rivals}, at equal {FLAGS.equal}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    check_uses()
    config = configuration(CONFIGURATION_FLAGS)
    if config["depth"]:
        raise ValueError("--depth is set by the comparison; see --depths.")
    if FLAGS["learning_rate"].present:
        raise ValueError("Give rates by --learning_rates; --learning_rate would change nothing.")
    equal_time.recorded(lambda: _compare(config))


def _compare(config: dict[str, Any]) -> None:
    data = None if FLAGS.report_only else _data()
    if data is not None:
        config[FINGERPRINT] = data.fingerprint
    elif FINGERPRINT in (known := read_json(os.path.join(FLAGS.workdir, "config.json")) or {}):
        config[FINGERPRINT] = known[FINGERPRINT]
    configs = variants(config)

    def measure():
        tf.get_logger().setLevel("ERROR")  # TensorFlow mistakes one graph per variant for retracing
        found = variant_times.measure_seconds_per_step(
            configs,
            lambda config: language_model.make_experiment(config, data),
            FLAGS.timing_rounds,
        )
        keras.utils.clear_session()
        return found

    _write(
        rows(
            equal_time.compare(
                config, comparison(), configs, measure, lambda seconds: plan(configs, seconds)
            )
        )
    )


def _write(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes figures, picture and table."""
    write_json(FLAGS.results or os.path.join(FLAGS.workdir, "compare.json"), results)
    document = FLAGS.document or os.path.join(FLAGS.workdir, "compare.md")
    os.makedirs(os.path.dirname(document) or ".", exist_ok=True)
    draw(results, os.path.splitext(document)[0] + ".png")
    with open(document, "w", encoding="utf-8") as file:
        file.write(comparison_table(results))
    print(comparison_table(results))
    print(f"The same, with a picture beside it: {document}")


def _data() -> TokenData:
    """Sets up the process like those of the runs, and returns the data set in the flags."""
    if FLAGS.keep_freed_memory:
        keep_freed_memory()
    # The same number of cores as for each of the runs.
    tf.config.threading.set_intra_op_parallelism_threads(cores_per_process(FLAGS.parallel))
    return load(
        FLAGS.dataset, data_dir=FLAGS.data_dir, files=FLAGS.files, prepared_dir=FLAGS.prepared_dir
    )


if __name__ == "__main__":
    program.run(main)
