"""What each training step is to do: explicit applications or the equilibrium, its budget, the penalty."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

# The smallest --train_steps that a run has had, in the configuration of one that was made longer: what is
# done at the start of a run is a share of that.
SHORTEST = "shortest_train_steps"


class StepSettings(NamedTuple):
    """What one training step is to do."""

    explicit_steps: int  # explicit applications; 0: the equilibrium
    max_steps: int  # the forward solver's budget
    penalty_share: float  # what the Jacobian penalty's weight is multiplied by


def takeover_step(config: Mapping[str, Any]) -> int:
    """Returns the first step that trains the equilibrium."""
    return round(config["shallow_share"] * config.get(SHORTEST, config["train_steps"]))


def explicit_steps_at(step: int, config: Mapping[str, Any]) -> int:
    """Returns how many explicit applications train at a step: 0 is the equilibrium."""
    if config["depth"]:
        return config["depth"]
    return config["shallow_steps"] if step < takeover_step(config) else 0


def max_steps_at(step: int, config: Mapping[str, Any]) -> int:
    """Returns the forward solver's budget at a step.

    It grows evenly, from training_max_steps when the equilibrium takes over to training_max_steps_end (0:
    max_steps) at the end: a rough equilibrium teaches as much and costs less, but a model that only ever
    sees rough ones comes to rely on them. With sampled_depth it is drawn anew each step, around that.
    """
    first = takeover_step(config)
    share = max(step - first, 0) / max(config["train_steps"] - first, 1)
    low, high = budget_ends(config)
    budget = low if high <= low else low + int(share * (high - low + 1))
    spread = min(config["sampled_depth"], budget - 1)
    if not spread:
        return budget
    # From (seed, step) alone, so that a run goes on as it would have.
    random = np.random.default_rng((config["seed"], step))
    return int(random.integers(budget - spread, budget + spread, endpoint=True))


def largest_budget(config: Mapping[str, Any]) -> int:
    """Returns what `max_steps_at` never exceeds."""
    budget = max(budget_ends(config))
    return budget + min(config["sampled_depth"], budget - 1)


def budget_ends(config: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the budgets when the equilibrium takes over, and at the end of training."""
    last = config.get("training_max_steps_end") or config["max_steps"]
    return config["training_max_steps"], last


def penalty_share_at(step: int, config: Mapping[str, Any]) -> float:
    """Returns the share of the Jacobian penalty's weight that holds at a step.

    It goes evenly from 1 to jacobian_penalty_end, below 1 by default: drift is a danger while the
    learning rate is high.
    """
    return 1.0 - (1.0 - config["jacobian_penalty_end"]) * step / config["train_steps"]


def settings_at(step: int, config: Mapping[str, Any]) -> StepSettings:
    """Returns what a configuration says about a step."""
    return StepSettings(
        explicit_steps_at(step, config), max_steps_at(step, config), penalty_share_at(step, config)
    )
