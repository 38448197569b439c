"""Every variant gets its best rate, by the same search."""

import math

import pytest

from benchmarks.training import rate_search
from benchmarks.training.rate_search import FAILED, Figures

CONFIGS = {name: {"train_steps": 100, "learning_rate": 1.0} for name in ("middle", "high", "wild")}
# Where each variant's scores are lowest.
OPTIMA = {"middle": 0.002, "high": 0.016, "wild": 0.0005}


def _train(calls):
    def train(runs):
        calls.append(sorted(runs))
        for (_, rate), config in runs.items():
            assert config["learning_rate"] == rate
            assert config["train_steps"] == 25
        return {
            # Above four times its best rate, a variant diverges.
            (name, rate): Figures(
                math.nan if rate > 4 * OPTIMA[name] else abs(math.log(rate / OPTIMA[name]))
            )
            for name, rate in runs
        }

    return train


def test_a_variant_whose_best_rate_is_at_an_end_tries_on():
    calls = []
    scores = rate_search.search(CONFIGS, [0.001, 0.002, 0.004], 0.25, _train(calls))
    assert list(scores["middle"]) == [0.001, 0.002, 0.004]
    assert list(scores["high"]) == [0.001, 0.002, 0.004, 0.008, 0.016]
    assert list(scores["wild"]) == [0.00025, 0.0005, 0.001, 0.002, 0.004]
    assert {name: rate_search.best(found) for name, found in scores.items()} == OPTIMA
    assert calls[1] == [("high", 0.008), ("wild", 0.0005)]
    assert scores["wild"][0.004] == FAILED


def test_where_every_run_fails_lower_rates_are_tried_and_then_that_is_said():
    def train(runs):
        return dict.fromkeys(runs, Figures(math.nan))

    scores = rate_search.search({"wild": CONFIGS["wild"]}, [0.01, 0.02], 0.25, train)["wild"]
    assert list(scores) == [0.0025, 0.005, 0.01, 0.02]
    with pytest.raises(ValueError, match="No run of the search ended well; rates tried: 0.0025"):
        rate_search.best(scores)


def test_finalists_are_the_best_rate_and_the_one_below():
    scores = {0.001: Figures(3.0), 0.002: Figures(1.0), 0.004: Figures(2.0)}
    assert rate_search.finalists(scores) == [0.001, 0.002]
    assert rate_search.finalists({**scores, 0.001: Figures(0.5)}) == [0.001]


def test_of_perfect_scores_the_lower_loss_is_better():
    scores = {0.001: Figures(-1.0, 0.3), 0.002: Figures(-1.0, 0.1), 0.004: Figures(-0.9, 0.01)}
    assert rate_search.best(scores) == 0.002
    assert rate_search.best({0.001: Figures(-1.0), 0.002: Figures(-1.0)}) == 0.001
    assert rate_search.best({0.001: FAILED, 0.002: Figures(5.0)}) == 0.002
