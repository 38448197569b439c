"""Rivals of the reasoning recipes are trained as in their sources, without settings of the recipe."""

import pytest

from benchmarks.training.reasoning_rivals import variants
from tfdeq.data.puzzles import PUZZLES
from tfdeq.training.reasoning import recipes

DEFAULTS = {
    "cell": "convolution", "segments": 0, "halting": "none", "sampled_depth": 0, "start_noise": 0.0,
    "path_noise": 0.0, "settling_penalty": 0.0, "depth": 0, "training_max_steps_end": 0,
}  # fmt: skip


def _variants(task, **given):
    config = {**DEFAULTS, **recipes.RUN, **recipes.EQUILIBRIUM, **recipes.RECIPES[task], **given}
    return variants({**config, "task": task})


@pytest.mark.parametrize("task", sorted(PUZZLES))
def test_what_the_rivals_have_of_the_recipe(task):
    found = _variants(task, path_noise=0.1)
    recipe = found.pop("equilibrium")
    assert recipe["path_noise"] == 0.1
    for name, config in found.items():
        supervised = name in ("truncated recursion", "deep supervision")
        assert config["segments"] == (16 if supervised else 0), name
        assert config["halting"] == ("exact" if supervised else "none"), name
        assert config["settling_penalty"] == config["start_noise"] == 0, name
        assert config["learning_rate"] == recipe["learning_rate"], name


def test_all_applications_are_differentiated_where_a_rival_says_so():
    maze, sudoku = (_variants(task)["unrolled"] for task in ("maze", "sudoku"))
    assert maze["adjoint_steps"] == maze["training_max_steps"] + maze["sampled_depth"]
    # Two segments of the recipe.
    assert sudoku["adjoint_steps"] == sudoku["training_max_steps"] == 16


def test_the_feed_forward_network_has_layers_of_its_own():
    config = _variants("maze")["feed-forward"]
    assert (config["depth"], config["layers"]) == (1, 56)  # as many as the equilibrium applies
