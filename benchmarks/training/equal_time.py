"""Comparisons of ways to train at equal time: steps, learning rates and runs, for any trainer.

First, the seconds per step of all variants are measured alternately in one process. They determine the
number of steps of each variant that fits the time, so the later runs need no idle machine: only their
number of steps matters. Then a learning rate is found for each variant, by the same search on
validation data: first with shorter runs, then with the best rate and the next lower one at full length,
because a rate that is good for a short run can be too high for a long one. The runs with the rate found
are compared on the test data. Those with the other rate are also tested, but their test figures are not
used.
"""

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from absl import flags

from benchmarks.training import rate_search, record
from tfdeq.programs.processes import Runs
from tfdeq.programs.workdir import read_json, write_json
from tfdeq.training import experiment
from tfdeq.training.flags.flag_uses import used
from tfdeq.training.records.resumption import FINGERPRINT, finished
from tfdeq.training.task import score_of

FLAGS = flags.FLAGS
_Config = Mapping[str, Any]


def define_flags(**defaults: Any) -> None:
    """Defines the flags of a comparison; defaults override those below."""
    definitions = [
        (flags.DEFINE_list, "only", [], "Names to train, those with commas in double quotes; none: all."),
        (flags.DEFINE_list, "learning_rates", ["0.003", "0.006", "0.012"], "Peak rates, ascending, that every variant tries in a shorter run of seed 0; next to the lowest and the highest up to two more, where they are the best. Then the best one and the one below it at full length. One rate: no search."),
        (flags.DEFINE_float, "search_share", 0.25, "Share of the steps of the runs that search, in (0, 1]."),
        (flags.DEFINE_integer, "seeds", 3, "Runs of each variant, seeds 0, 1, …. Default: 3."),
        (flags.DEFINE_integer, "parallel", 2, "Training processes at a time, one core each. Default: 2."),
        (flags.DEFINE_integer, "timing_rounds", 8, "Rounds of timed steps, each variant once a round."),
        (flags.DEFINE_bool, "report_only", False, "Train nothing: table and picture of the runs that are finished."),
        (flags.DEFINE_string, "results", None, "JSON file for the figures. Default: in --workdir."),
        (flags.DEFINE_string, "record", None, "JSON file of finished runs: those in it are not trained again, and at the end, however it comes, those of --workdir stand in it too. For a comparison that takes several machines or evenings."),
        (flags.DEFINE_string, "document", None, "Markdown file to write the table to, plot beside it."),
    ]  # fmt: skip
    for define, name, default, text in definitions:
        define(name, defaults.get(name, default), text)


class Compared(NamedTuple):
    """A variant with some or all of its runs finished."""

    config: _Config  # except the seed
    seconds_per_step: float
    metrics: list[dict[str, Any]]  # metrics.json of each seed


class Comparison:
    """The runs of a comparison, each in a separate process.

    Args:
        program: the trainer, for example "trainers.language_model".
        workdir: folder of the runs.
        parallel: number of processes at a time.
        flags_: flags of all runs that are not part of their configuration.
        search_flags: flags of the runs in the search, which use as little test data as possible,
            because the search must not depend on them.
    """

    def __init__(
        self,
        program: str,
        workdir: str,
        parallel: int,
        flags_: Mapping[str, Any],
        search_flags: Mapping[str, Any],
    ):
        self._program, self._workdir, self._parallel = program, workdir, parallel
        self._flags, self._search_flags = dict(flags_), dict(search_flags)

    def folder(self, name: str, rate: float, seed: int) -> str:
        """Returns the folder of a run."""
        name = name.replace(", ", "_").replace(" ", "_")
        return os.path.join(self._workdir, f"{name}_rate_{rate:g}_seed_{seed}")

    def train(self, runs: Mapping[str, _Config], seeds: int) -> None:
        """Trains all runs and seeds; finished ones are kept, and runs with fewer steps continue.

        Raises:
            ValueError: if a finished run has another configuration.
        """
        self._train(
            {
                self.folder(name, config["learning_rate"], seed): {**config, "seed": seed}
                # The closest rivals first; if the program is interrupted, running it again
                # completes the rest.
                for name, config in sorted(runs.items(), key=lambda item: item[1]["depth"])
                for seed in range(seeds)
            }
        )

    def _train(self, runs: Mapping[str, _Config], may_fail: bool = False) -> None:
        """Trains the runs in folder -> configuration that are not finished."""
        with Runs(self._program, self._parallel) as processes:
            for folder, config in runs.items():
                experiment.check_resumption(folder, config)
                if finished(folder, config) is None:
                    flags_ = {name: config[name] for name in config if name != FINGERPRINT}
                    processes.start(folder, used({**self._flags, **flags_}))
            processes.wait(may_fail)

    def search_rates(
        self, runs: Mapping[str, _Config], rates: list[float], share: float
    ) -> dict[str, dict[float, rate_search.Figures]]:
        """Returns name -> rate -> the validation figures of a run with a share of the steps."""

        def train(candidates):
            search = Comparison(
                self._program,
                os.path.join(self._workdir, "search"),
                self._parallel,
                self._flags,
                {},
            )
            folders = {(name, rate): search.folder(name, rate, 0) for name, rate in candidates}
            settled = {"seed": 0, **self._search_flags}
            found = {folders[c]: {**config, **settled} for c, config in candidates.items()}
            search._train(found, may_fail=True)
            return {c: _validation_figures(folders[c], found[folders[c]]) for c in candidates}

        return rate_search.search(runs, rates, share, train)

    def best_rates(
        self, runs: Mapping[str, _Config], candidates: Mapping[str, list[float]]
    ) -> dict[str, float]:
        """Returns name -> the rate with the best validation figures in full runs with seed 0.

        Args:
            candidates: name -> rates.

        Raises:
            ValueError: if every run of a variant failed.
        """
        wanted = {
            (name, rate): {**runs[name], "learning_rate": rate, "seed": 0}
            for name, rates in candidates.items()
            for rate in rates
        }
        folders = {(name, rate): self.folder(name, rate, 0) for name, rate in wanted}
        self._train({folders[c]: config for c, config in wanted.items()}, may_fail=True)
        scores: dict[str, dict[float, rate_search.Figures]] = {name: {} for name in candidates}
        for (name, rate), config in wanted.items():
            figures = _validation_figures(folders[name, rate], config)
            scores[name][rate] = rate_search.finite_or_failed(figures)
        return {name: rate_search.best(found) for name, found in scores.items()}

    def compared(
        self, runs: Mapping[str, _Config], seconds: Mapping[str, float], seeds: int
    ) -> dict[str, Compared]:
        """Returns name -> the finished runs, for names that have any."""
        results = {}
        for name, config in runs.items():
            folders = [self.folder(name, config["learning_rate"], seed) for seed in range(seeds)]
            found = [finished(folder, config) for folder in folders]
            metrics = [value for value in found if value is not None]
            if metrics:
                results[name] = Compared(config, seconds[name], metrics)
        return results


def _validation_figures(folder: str, config: _Config) -> rate_search.Figures:
    """Returns the best validation score and the loss at its step; NaN for a run without a finite score.

    A score for which higher is better is negated. Where all runs reach the best possible score, such as
    all answers right, the loss tells them apart.
    """
    metrics = finished(folder, config) or {}
    train = metrics.get("train") or {}
    best = train.get("best") or {}
    score = best.get("score", math.nan)
    if metrics.get("score") and not score_of(metrics).lower_is_better:
        score = -score
    losses = dict(zip(train.get("step", ()), train.get("validation_loss", ()), strict=False))
    loss = losses.get(best.get("step"))
    return rate_search.Figures(score, 0.0 if loss is None else loss)


def compare(
    config: dict[str, Any],
    comparison: Comparison,
    configs: Mapping[str, _Config],
    measure: Callable[[], Mapping[str, float]],
    plan: Callable[[Mapping[str, float]], dict[str, dict[str, Any]]],
) -> dict[str, Compared]:
    """Measures, searches and trains according to the flags, and returns the finished runs.

    Args:
        config: configuration of the comparison; its folder must not be used for another one.
        configs: name -> configuration of the variants.
        measure: () -> seconds per step of each variant; called once for a folder.
        plan: (seconds per step) -> name -> configuration with its number of steps.

    Raises:
        ValueError: for unknown names, or if nothing is finished.
    """
    unknown = sorted(set(FLAGS.only) - set(configs))
    if unknown:
        raise ValueError(f"No such variants: {', '.join(unknown)}. Known: {'; '.join(configs)}.")
    experiment.check_resumption(FLAGS.workdir, config)
    write_json(os.path.join(FLAGS.workdir, "config.json"), config)
    seconds = _timings(configs, measure)
    runs = plan(seconds)
    wanted = {name: run for name, run in runs.items() if not FLAGS.only or name in FLAGS.only}
    print("Seconds per step: " + ", ".join(f"{k} {v:.3f}" for k, v in seconds.items()), flush=True)
    rates = [float(rate) for rate in FLAGS.learning_rates]
    if len(rates) > 1:
        runs = _at_found_rates(comparison, runs, wanted, rates)
        wanted = {name: runs[name] for name in wanted if name in runs}
    if not FLAGS.report_only:
        comparison.train(wanted, FLAGS.seeds)
    results = comparison.compared(runs, seconds, FLAGS.seeds)
    if not results:
        raise ValueError(
            f"No run in {FLAGS.workdir} is finished; train them without --report_only."
        )
    return results


def recorded(run: Callable[[], None]) -> None:
    """Calls run with the runs of --record in --workdir; then writes the runs of --workdir to --record.

    Raises:
        ValueError: for invalid rates or an invalid share of the search, before anything is written.
    """
    _check_search()
    if FLAGS.record:
        record.unpack(FLAGS.record, FLAGS.workdir)
    try:
        run()
    finally:
        if FLAGS.record:
            record.pack(FLAGS.record, FLAGS.workdir)


def with_rate(config: _Config) -> dict[str, Any]:
    """Returns a configuration with the rate of --learning_rates, if there is only one."""
    rates = FLAGS.learning_rates
    return {**config, "learning_rate": float(rates[0])} if len(rates) == 1 else dict(config)


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


def _timings(
    configs: Mapping[str, _Config], measure: Callable[[], Mapping[str, float]]
) -> dict[str, float]:
    """Returns the seconds per step of each variant, measured once for the folder."""
    path = os.path.join(FLAGS.workdir, "seconds_per_step.json")
    seconds = read_json(path) or {}
    if set(configs) <= set(seconds):
        return seconds
    if FLAGS.report_only:
        raise ValueError(f"{path} has not all variants; run without --report_only.")
    seconds = dict(measure())
    write_json(path, seconds)
    return seconds


def _at_found_rates(
    comparison: Comparison,
    runs: Mapping[str, _Config],
    wanted: Mapping[str, _Config],
    rates: list[float],
) -> dict[str, dict[str, Any]]:
    """Returns the runs with the rates found by a search, now (for the requested variants) or earlier."""
    path = os.path.join(FLAGS.workdir, "learning_rates.json")
    found = {}
    if not FLAGS.report_only:
        scores = comparison.search_rates(wanted, rates, FLAGS.search_share)
        candidates = {name: rate_search.finalists(tried) for name, tried in scores.items()}
        found = comparison.best_rates(wanted, candidates)
    chosen = {**(read_json(path) or {}), **found}
    write_json(path, chosen)
    print("Rates: " + ", ".join(f"{k} {v:g}" for k, v in chosen.items()), flush=True)
    return {
        name: {**run, "learning_rate": chosen[name]} for name, run in runs.items() if name in chosen
    }
