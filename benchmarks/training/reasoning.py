"""Compares ways to learn puzzles, at equal time: the recipe of a task and its rivals.

python -m benchmarks.training.reasoning --task=maze --workdir=runs/mazes --minutes=45 --seeds=2
    --record=benchmarks/results/reasoning_maze.json --test_sizes=33,59

See equal_time.py. The time of a run is an upper bound, because no timed solve ends before its budget.
`benchmarks.results.reasoning` makes docs/results/reasoning.md from the results.
"""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf
from absl import flags

from benchmarks.training import equal_time, variant_times
from benchmarks.training.equal_time import Comparison
from benchmarks.training.reasoning_rivals import variants
from tfdeq.programs import program
from tfdeq.programs.processes import cores_per_process
from tfdeq.programs.workdir import write_json
from tfdeq.training.devices.allocator import keep_freed_memory
from tfdeq.training.flags.shared import check_uses, configuration
from tfdeq.training.reasoning import recipes
from tfdeq.training.reasoning.experiment import make_experiment
from trainers.reasoning import CONFIGURATION_FLAGS

FLAGS = flags.FLAGS
flags.DEFINE_float("minutes", 10.0, "Training time of every run, on one core.")
equal_time.define_flags(learning_rates=["0.001", "0.002", "0.004"])
# The small tests of the runs in the search.
_SEARCH = {"test_puzzles": 1, "test_sizes": [], "test_starts": [], "test_budget": 1.0}


def plan(
    configs: Mapping[str, Mapping[str, Any]], seconds: Mapping[str, float], minutes: float
) -> dict[str, dict[str, Any]]:
    """Returns name -> configuration with the steps that fit the given minutes."""
    return {
        name: {
            **equal_time.with_rate(config),
            "train_steps": max(1, round(60 * minutes / seconds[name])),
        }
        for name, config in configs.items()
    }


def main() -> None:
    recipes.apply(FLAGS)
    check_uses()
    config = configuration(CONFIGURATION_FLAGS)
    if config["depth"]:
        raise ValueError("--depth is set by the comparison.")
    for name, other in (("learning_rate", "learning_rates"), ("train_steps", "minutes")):
        if FLAGS[name].present:
            raise ValueError(f"Give --{other}; --{name} would change nothing.")
    equal_time.recorded(lambda: _compare({**config, "minutes": FLAGS.minutes}))


def _compare(config: dict[str, Any]) -> None:
    minutes = config["minutes"]
    configs = variants({name: value for name, value in config.items() if name != "minutes"})

    def measure():
        if FLAGS.keep_freed_memory:
            keep_freed_memory()
        # The same number of cores as for each of the runs.
        tf.config.threading.set_intra_op_parallelism_threads(cores_per_process(FLAGS.parallel))
        tf.get_logger().setLevel("ERROR")  # TensorFlow mistakes one graph per variant for retracing
        found = variant_times.measure_seconds_per_step(
            configs, lambda config: make_experiment(config, FLAGS.prepared_dir), FLAGS.timing_rounds
        )
        keras.utils.clear_session()
        return found

    flags_ = {name: FLAGS[name].value for name in ("prepared_dir", "tpu", "keep_freed_memory")}
    comparison = Comparison("trainers.reasoning", FLAGS.workdir, FLAGS.parallel, flags_, _SEARCH)
    compared = equal_time.compare(
        config, comparison, configs, measure, lambda seconds: plan(configs, seconds, minutes)
    )
    results = {
        name: {
            "learning_rate": run.config["learning_rate"],
            "steps": run.config["train_steps"],
            "seconds_per_step": run.seconds_per_step,
            "parameters": run.metrics[0].get("parameters"),
            "test": [metrics["test"] for metrics in run.metrics],
        }
        for name, run in compared.items()
    }
    write_json(FLAGS.results or f"{FLAGS.workdir}/reasoning.json", results)
    for name, row in results.items():
        exact = ", ".join(f"{test['exact']:.3f}" for test in row["test"])
        print(f"{name}: {row['steps']:,} steps, rate {row['learning_rate']:g}, exact {exact}")


if __name__ == "__main__":
    program.run(main)
