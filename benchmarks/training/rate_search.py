"""The search for a learning rate, the same for each variant of a comparison."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

EXTENSIONS = 2  # largest number of rates beyond the given ones for each variant
Candidate = tuple[str, float]  # a variant's name and a rate


class Figures(NamedTuple):
    """What a run is judged by, in this order; lower is better."""

    score: float
    loss: float = 0.0  # where the score is as good as it can be


FAILED = Figures(math.inf, math.inf)


def search(
    configs: Mapping[str, Mapping[str, Any]],
    rates: Sequence[float],
    share: float,
    train: Callable[[Mapping[Candidate, Mapping[str, Any]]], Mapping[Candidate, Figures]],
) -> dict[str, dict[float, Figures]]:
    """Returns name -> rate -> validation figures of a shorter run.

    All variants try the same rates. While the best rate of a variant is the lowest or the highest that
    it has tried, the next one beyond it is tried too.

    Args:
        configs: name -> configuration with `learning_rate` and `train_steps`.
        rates: ascending, at least two; the last two determine the factor to the next one.
        share: share of the steps for each of these runs.
        train: candidate -> configuration; returns the candidates' figures, infinite or NaN for runs that
            failed.
    """
    factor = rates[-1] / rates[-2]
    scores: dict[str, dict[float, Figures]] = {name: {} for name in configs}
    wanted = {name: list(rates) for name in configs}
    for _ in range(1 + EXTENSIONS):
        runs = {
            (name, rate): {
                **configs[name],
                "learning_rate": rate,
                "train_steps": max(1, round(share * configs[name]["train_steps"])),
            }
            for name, tried in wanted.items()
            for rate in tried
        }
        for (name, rate), found in train(runs).items() if runs else ():
            scores[name][rate] = finite_or_failed(found)
        wanted = {name: _beyond(tried, factor) for name, tried in scores.items()}
    return {name: dict(sorted(tried.items())) for name, tried in scores.items()}


def finite_or_failed(found: Figures) -> Figures:
    """Returns the figures of a run, those of a failed one if they are not finite."""
    return found if all(map(math.isfinite, found)) else FAILED


def best(scores: Mapping[float, Figures]) -> float:
    """Returns the rate with the lowest score; of equals, the one with the lower loss, then the lower rate.

    Raises:
        ValueError: if every run failed.
    """
    rate = min(scores, key=lambda rate: (scores[rate], rate))
    if scores[rate] == FAILED:
        tried = ", ".join(f"{rate:g}" for rate in scores)
        raise ValueError(f"No run of the search ended well; rates tried: {tried}.")
    return rate


def finalists(scores: Mapping[float, Figures]) -> list[float]:
    """Returns the rate with the lowest score and the next lower one that was tried, ascending.

    A shorter run is at its peak rate for a shorter time, so its best rate may be too high for a longer
    one.

    Raises:
        ValueError: if every run failed.
    """
    tried = sorted(scores)
    place = tried.index(best(scores))
    return tried[max(place - 1, 0) : place + 1]


def _beyond(scores: Mapping[float, Figures], factor: float) -> list[float]:
    """Returns the next rate, if the best one is at an end of those tried, rounded to three digits."""
    lowest, highest = min(scores), max(scores)
    if all(found == FAILED for found in scores.values()):
        return [float(f"{lowest / factor:.3g}")]
    found = best(scores)
    if found == lowest:
        return [float(f"{lowest / factor:.3g}")]
    return [float(f"{highest * factor:.3g}")] if found == highest else []
