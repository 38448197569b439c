"""The time of a training step of each variant of a comparison, measured alternately in one process."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from tfdeq.training import experiment
from tfdeq.training.experiment import Experiment
from tfdeq.training.schedule import StepSettings, budget_ends
from tfdeq.training.trainer import Trainer


def measure_seconds_per_step(
    configs: Mapping[str, Mapping[str, Any]],
    make: Callable[[Mapping[str, Any]], Experiment],
    rounds: int,
) -> dict[str, float]:
    """Times the compiled training step of every variant, alternately; returns medians.

    The equilibrium's figure is the mean over its schedule: shallow and solved steps weighted by their
    shares, the solved ones at the mean of the first and the last budget, because the budget grows
    linearly. Since no solve ends before its budget, the figure is an upper bound of a run's time.

    Args:
        configs: name -> configuration. make: configuration -> its experiment; all on the same data.
        rounds: number of rounds, in each of which every variant is timed once.
    """
    trainers, batches, steps = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, config in configs.items():
            # With weights that start at zero, the state would hardly matter, and a solve would end
            # before its budget.
            known = {"recurrent_scale": 1.0, "tolerance": 1e-12}
            config = {**config, **{key: known[key] for key in known if key in config}}
            made = make(config)
            batches[name] = iter(made.task.batches(0, 0, 1))
            trainers[name] = experiment.make_trainer(config, os.path.join(folder, name), made)
            for explicit_steps, max_steps, share in phases(config):
                key = name, explicit_steps, max_steps
                steps[key] = steps.get(key, 0.0) + share
        times: dict[tuple[str, int, int], list[float]] = {key: [] for key in steps}
        for round_ in range(rounds + 1):
            for (name, explicit_steps, max_steps), taken in times.items():
                elapsed = _time_steps(trainers[name], batches[name], explicit_steps, max_steps)
                if round_:  # the first round compiles
                    taken.append(elapsed)
    result = dict.fromkeys(configs, 0.0)
    for key, share in steps.items():
        result[key[0]] += share * statistics.median(times[key])
    return result


def phases(config: Mapping[str, Any]) -> list[tuple[int, int, float]]:
    """Returns (explicit steps, budget, share of the training) for each kind of step."""
    if config["depth"]:
        return [(config["depth"], config["max_steps"], 1.0)]
    first, last = budget_ends(config)
    last = max(first, last)
    shallow = config["shallow_share"]
    solved = (1.0 - shallow) / 2
    explicit = [(config["shallow_steps"], first, shallow)] if shallow else []
    return [*explicit, (0, first, solved), (0, last, solved)]


_REPEATS = 3  # number of steps between two readings of the clock


def _time_steps(trainer: Trainer, batches, count: int, max_steps: int) -> float:
    settings = StepSettings(count, max_steps, penalty_share=1.0)
    started = time.perf_counter()
    for _ in range(_REPEATS):
        trainer.step.run(batches, [settings])
    trainer.step.wait()
    return (time.perf_counter() - started) / _REPEATS
