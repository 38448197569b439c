"""The settings of each training step: explicit applications or the equilibrium, budget and penalty."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

# Entry in the configuration of a run that was made longer: the smallest --train_steps that it has
# had. Phases at the start of a run are shares of this number.
SHORTEST = "shortest_train_steps"


class StepSettings(NamedTuple):
    """The settings of one training step."""

    explicit_steps: int  # number of explicit applications; 0: the equilibrium
    max_steps: int  # the forward solver's budget
    penalty_share: float  # factor of the Jacobian penalty's weight


def takeover_step(config: Mapping[str, Any]) -> int:
    """Returns the first step that trains the equilibrium."""
    return round(config["shallow_share"] * config.get(SHORTEST, config["train_steps"]))


def explicit_steps_at(step: int, config: Mapping[str, Any]) -> int:
    """Returns the number of explicit applications at a step; 0: the equilibrium."""
    if config["depth"]:
        return config["depth"]
    return config["shallow_steps"] if step < takeover_step(config) else 0


def max_steps_at(step: int, config: Mapping[str, Any]) -> int:
    """Returns the forward solver's budget at a step.

    It grows linearly, from training_max_steps when the equilibrium takes over to training_max_steps_end
    (0: max_steps) at the end. An inaccurate equilibrium is as useful at first and costs less, but a
    model that only sees inaccurate ones comes to rely on them. With sampled_depth the budget is drawn
    around this value in each step.
    """
    first = takeover_step(config)
    share = max(step - first, 0) / max(config["train_steps"] - first, 1)
    low, high = budget_ends(config)
    budget = low if high <= low else low + int(share * (high - low + 1))
    spread = min(config["sampled_depth"], budget - 1)
    if not spread:
        return budget
    # Only from (seed, step), so that a resumed run continues in the same way.
    random = np.random.default_rng((config["seed"], step))
    return int(random.integers(budget - spread, budget + spread, endpoint=True))


def largest_budget(config: Mapping[str, Any]) -> int:
    """Returns an upper bound of `max_steps_at`."""
    budget = max(budget_ends(config))
    return budget + min(config["sampled_depth"], budget - 1)


def budget_ends(config: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the budgets when the equilibrium takes over and at the end of training."""
    last = config.get("training_max_steps_end") or config["max_steps"]
    return config["training_max_steps"], last


def penalty_share_at(step: int, config: Mapping[str, Any]) -> float:
    """Returns the factor of the Jacobian penalty's weight at a step.

    It changes linearly from 1 to jacobian_penalty_end, which is below 1 by default, because the penalty
    is needed most while the learning rate is high.
    """
    return 1.0 - (1.0 - config["jacobian_penalty_end"]) * step / config["train_steps"]


def settings_at(step: int, config: Mapping[str, Any]) -> StepSettings:
    """Returns a configuration's settings for a step."""
    return StepSettings(
        explicit_steps_at(step, config), max_steps_at(step, config), penalty_share_at(step, config)
    )
