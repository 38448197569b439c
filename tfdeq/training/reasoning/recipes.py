"""The best measured settings for each task, as defaults of the flags."""

from typing import Any

from absl import flags

from tfdeq.training.flags.shared import apply_recipe

# For all tasks. While an answer travels through the state, the residual stays constant, so budgets
# are several times those of a language model.
RUN: dict[str, Any] = {
    "train_steps": 1000,
    "batch_size": 64,
    "learning_rate": 2e-3,
    "optimizer": "adam",
}
EQUILIBRIUM: dict[str, Any] = {
    "max_steps": 40,
    "training_max_steps": 40,
    "backward_max_steps": 30,
    "jacobian_penalty": 0.1,
    "jacobian_penalty_end": 1.0,
    "jacobian_penalty_fraction": 0.125,
    "shallow_share": 0.3,
    "shallow_steps": 20,
    "equilibrium_watch": "none",
}
# task -> flag -> value, if it differs.
RECIPES: dict[str, dict[str, Any]] = {
    "prefix_sums": {"train_steps": 600, "width": 32, "block": 64},
    # Budgets range from a few evaluations to more than the equilibrium needs, and solves start from
    # noise. Without either, 9 × 9 mazes are solved as well, but fewer larger ones are, or fewer
    # answers settle.
    "maze": {
        "train_puzzles": 100000,
        "train_steps": 7000,
        "batch_size": 32,
        "learning_rate": 1.5e-3,
        "warmup_share": 0.1,
        "ema": 0.998,
        "max_steps": 160,
        "training_max_steps": 56,
        "training_max_steps_end": 56,
        "sampled_depth": 48,
        "start_noise": 1.0,
        "adjoint": "unrolled",
        "adjoint_steps": 8,
        "jacobian_penalty": 0.0,
        "settling_penalty": 0.1,
        "shallow_share": 0.0,
    },
    "sudoku": {
        "cell": "attention",
        "width": 96,
        "train_puzzles": 50000,
        "train_steps": 6000,
        "learning_rate": 1e-3,
        "warmup_share": 0.05,
        "ema": 0.99,
        "max_steps": 32,
        "training_max_steps": 8,
        "training_max_steps_end": 8,
        "segments": 8,
        "halting": "settled",
        "start_noise": 0.5,
        "adjoint": "unrolled",
        "adjoint_steps": 6,
        "jacobian_penalty": 0.0,
        "settling_penalty": 0.1,
        "shallow_share": 0.0,
    },
    "reachability": {"cell": "attention", "width": 48},
}


def apply(values: flags.FlagValues) -> None:
    """Sets flags that the user did not set to the values in the recipe of --task, if they are used."""
    apply_recipe(values, RECIPES[values["task"].value])
