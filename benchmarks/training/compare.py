"""Compares the equilibrium with explicit depth, or with other ways to train one.

python -m benchmarks.training.compare --workdir=runs/compare [flags of trainers.language_model]
python -m benchmarks.training.compare --workdir=runs/recipes --rivals=recipes [flags of the same]

First the seconds per step of every variant are measured, in turns, in one process. They give each
variant the number of steps that fits the equilibrium's training time (with --equal=steps, all have
--train_steps), so that the runs that follow need no quiet machine: only their number of steps matters.
Then every variant looks for its learning rate, by the same search on validation data; the test data are
read after the runs with that rate, once each.
"""

import math
import os
import statistics
from collections.abc import Mapping
from typing import Any

import keras
import matplotlib
import tensorflow as tf
from absl import flags

from benchmarks.results.tables import comparison_table
from benchmarks.training import rate_search, record, variant_times
from benchmarks.training.recipes import recipe_variants
from tfdeq.data.text.registry import load
from tfdeq.data.token_data import TokenData
from tfdeq.programs import program
from tfdeq.programs.processes import Runs, cores_per_process
from tfdeq.programs.workdir import read_json, write_json
from tfdeq.training import experiment
from tfdeq.training.devices.allocator import keep_freed_memory
from tfdeq.training.flags.flag_uses import used
from tfdeq.training.flags.shared import check_uses, configuration
from tfdeq.training.records.resumption import FINGERPRINT, finished
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
flags.DEFINE_list("only", [], "Names to train, those with commas in double quotes; none: all.")
flags.DEFINE_list("depths", ["1", "4", "8"], "Explicit applications to compare with.")
flags.DEFINE_list(
    "learning_rates",
    ["0.003", "0.006", "0.012"],
    "Peak rates, ascending, that every variant tries in a shorter run of seed 0; next to the lowest and the "
    "highest up to two more, where they are the best. One rate: no search.",
)
flags.DEFINE_float("search_share", 0.25, "Share of the steps of the runs that search, in (0, 1].")
flags.DEFINE_integer("seeds", 3, "Runs of each variant, seeds 0, 1, …. Default: 3.")
flags.DEFINE_integer("parallel", 2, "Training processes at a time, one core each. Default: 2.")
flags.DEFINE_integer("timing_rounds", 8, "Rounds of timed steps, each variant once a round.")
flags.DEFINE_bool(
    "report_only", False, "Train nothing: table and picture of the runs that are finished."
)
flags.DEFINE_string("results", None, "JSON file for the figures. Default: in --workdir.")
flags.DEFINE_string(
    "record",
    None,
    "JSON file of finished runs: those in it are not trained again, and at the end, however it comes, those "
    "of --workdir stand in it too. For a comparison that takes several machines or evenings.",
)
flags.DEFINE_string("document", None, "Markdown file to write the table to, plot beside it.")


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

    With --equal=steps, with those of the flags.
    """
    configs = {name: _with_rate(config) for name, config in configs.items()}
    if FLAGS.equal == "steps":
        return configs
    total = configs["equilibrium"]["train_steps"] * seconds["equilibrium"]
    return {
        name: {**config, "train_steps": round(total / seconds[name])}
        for name, config in configs.items()
    }


def _with_rate(config: Mapping[str, Any]) -> dict[str, Any]:
    """With the only rate of --learning_rates, if there is but one."""
    rates = FLAGS.learning_rates
    return {**config, "learning_rate": float(rates[0])} if len(rates) == 1 else dict(config)


def train_all(runs: Mapping[str, Mapping[str, Any]], workdir: str) -> None:
    """Trains every run and seed, each in a process of its own; finished ones are kept.

    Runs of fewer steps go on.

    Raises:
        ValueError: if a finished run is of another configuration.
    """
    _train(
        {
            run_folder(workdir, name, seed): {**config, "seed": seed}
            # The closest rivals first: what is cut off can be made up by running again.
            for name, config in sorted(runs.items(), key=lambda item: item[1]["depth"])
            for seed in range(FLAGS.seeds)
        }
    )


def _train(runs: Mapping[str, Mapping[str, Any]], may_fail: bool = False) -> None:
    """Trains folder -> configuration, those that are not finished."""
    with Runs("trainers.language_model", FLAGS.parallel) as processes:
        for folder, config in runs.items():
            experiment.check_resumption(folder, config)
            if finished(folder, config) is None:
                flags_ = {name: config[name] for name in config if name != FINGERPRINT}
                processes.start(folder, used({**_program_flags(), **flags_}))
        processes.wait(may_fail)


def search_rates(
    runs: Mapping[str, Mapping[str, Any]], workdir: str
) -> dict[str, dict[float, float]]:
    """Returns name -> rate -> lowest validation score of a run of --search_share of the steps."""

    def train(candidates):
        folders = {
            candidate: run_folder(
                os.path.join(workdir, "search"), f"{candidate[0]}, rate {candidate[1]:g}", 0
            )
            for candidate in candidates
        }
        # The test data are not for choosing: as few as can be are read.
        settled = {"seed": 0, "test_windows": 1}
        found = {folders[c]: {**config, **settled} for c, config in candidates.items()}
        _train(found, may_fail=True)
        return {c: _validation_score(folders[c], found[folders[c]]) for c in candidates}

    rates = [float(rate) for rate in FLAGS.learning_rates]
    return rate_search.search(runs, rates, FLAGS.search_share, train)


def _validation_score(folder: str, config: Mapping[str, Any]) -> float:
    """NaN for a run that failed, or that never had a finite score."""
    best = ((finished(folder, config) or {}).get("train") or {}).get("best") or {}
    return best.get("score", math.nan)


def _program_flags() -> dict[str, Any]:
    """Flags of the runs that are no part of their configuration."""
    return {name: FLAGS[name].value for name in ("prepared_dir", "tpu", "keep_freed_memory")}


def run_folder(workdir: str, name: str, seed: int) -> str:
    return os.path.join(workdir, f"{name.replace(', ', '_').replace(' ', '_')}_seed_{seed}")


def collect(runs: Mapping[str, Any], seconds: Mapping[str, float], workdir: str) -> dict[str, Any]:
    """Returns run name -> results over the seeds that are finished; names without one are left out."""
    results = {}
    for name, config in runs.items():
        folders = [run_folder(workdir, name, seed) for seed in range(FLAGS.seeds)]
        found = [finished(folder, config) for folder in folders]
        metrics = [value for value in found if value is not None]
        if not metrics:
            continue
        key = score_of(metrics[0]).name
        bits = [value["test"][key] for value in metrics]
        results[name] = {
            "learning_rate": config["learning_rate"],
            "steps": config["train_steps"],
            "seconds_per_step": seconds[name],
            "seconds": seconds[name] * config["train_steps"],
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
    _check_search()
    if FLAGS.record:
        record.unpack(FLAGS.record, FLAGS.workdir)
    try:
        _compare(config)
    finally:
        if FLAGS.record:
            record.pack(FLAGS.record, FLAGS.workdir)


def _compare(config: dict[str, Any]) -> None:
    data = None if FLAGS.report_only else _data()
    if data is not None:
        config[FINGERPRINT] = data.fingerprint
    elif FINGERPRINT in (known := read_json(os.path.join(FLAGS.workdir, "config.json")) or {}):
        config[FINGERPRINT] = known[FINGERPRINT]
    experiment.check_resumption(FLAGS.workdir, config)
    write_json(os.path.join(FLAGS.workdir, "config.json"), config)
    configs = variants(config)
    unknown = sorted(set(FLAGS.only) - set(configs))
    if unknown:
        raise ValueError(f"No such variants: {', '.join(unknown)}. Known: {'; '.join(configs)}.")
    seconds = _timings(configs, data)
    runs = plan(configs, seconds)
    wanted = {name: run for name, run in runs.items() if not FLAGS.only or name in FLAGS.only}
    print("Seconds per step: " + ", ".join(f"{k} {v:.3f}" for k, v in seconds.items()), flush=True)
    if len(FLAGS.learning_rates) > 1:
        runs = _at_found_rates(runs, wanted)
        wanted = {name: runs[name] for name in wanted if name in runs}
    if not FLAGS.report_only:
        train_all(wanted, FLAGS.workdir)
    results = collect(runs, seconds, FLAGS.workdir)
    if not results:
        raise ValueError(
            f"No run in {FLAGS.workdir} is finished; train them without --report_only."
        )
    _write(results)


def _at_found_rates(
    runs: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The runs with the rates that a search found, now (of those wanted) or before."""
    path = os.path.join(FLAGS.workdir, "learning_rates.json")
    found = {} if FLAGS.report_only else search_rates(wanted, FLAGS.workdir)
    chosen = {name: rate_search.best(scores) for name, scores in found.items()}
    chosen = {**(read_json(path) or {}), **chosen}
    write_json(path, chosen)
    print("Rates: " + ", ".join(f"{k} {v:g}" for k, v in chosen.items()), flush=True)
    return {
        name: {**run, "learning_rate": chosen[name]} for name, run in runs.items() if name in chosen
    }


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


def _check_search() -> None:
    try:
        rates = [float(rate) for rate in FLAGS.learning_rates]
    except ValueError:
        rates = []
    if not rates or min(rates) <= 0 or sorted(set(rates)) != rates:
        raise ValueError(
            f"--learning_rates must be numbers above 0, ascending; received {FLAGS.learning_rates}."
        )
    if not 0 < FLAGS.search_share <= 1:
        raise ValueError(f"--search_share must be in (0, 1]; received {FLAGS.search_share}.")


def _data() -> TokenData:
    """The data set that the flags name; before that, the process is set up as those of the runs are."""
    if FLAGS.keep_freed_memory:
        keep_freed_memory()
    # The same share of the cores as each of the runs will have.
    tf.config.threading.set_intra_op_parallelism_threads(cores_per_process(FLAGS.parallel))
    return load(
        FLAGS.dataset, data_dir=FLAGS.data_dir, files=FLAGS.files, prepared_dir=FLAGS.prepared_dir
    )


def _timings(configs: Mapping[str, Mapping[str, Any]], data: TokenData | None) -> dict[str, float]:
    """Returns the seconds per step of each variant, measured once for the folder.

    data: None, with --report_only: they must have been measured.
    """
    path = os.path.join(FLAGS.workdir, "seconds_per_step.json")
    seconds = read_json(path) or {}
    if set(configs) <= set(seconds):
        return seconds
    if data is None:
        raise ValueError(f"{path} has not all variants; run without --report_only.")
    tf.get_logger().setLevel("ERROR")  # one graph for each variant looks like retracing
    seconds = variant_times.measure_seconds_per_step(configs, data, FLAGS.timing_rounds)
    write_json(path, seconds)
    keras.utils.clear_session()
    return seconds


if __name__ == "__main__":
    program.run(main)
