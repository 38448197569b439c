"""Recipes: what a task's flags are where nobody set them."""

import pytest
from absl import flags

from tfdeq.data.puzzles import PUZZLES
from tfdeq.training.reasoning import recipes
from trainers import reasoning


@pytest.fixture
def values():
    """The trainer's flags, as a command line of their own."""

    def parsed(*arguments):
        found = flags.FlagValues()
        for name in reasoning.CONFIGURATION_FLAGS:
            found[name] = flags.FLAGS[name]
        saved = _state_of(found)
        found(["trainers.reasoning", *arguments])
        return found, saved

    states = []

    def given(*arguments):
        found, saved = parsed(*arguments)
        states.append(saved)
        recipes.apply(found)
        return found

    yield given
    for saved in reversed(states):
        for name, (value, present) in saved.items():
            flags.FLAGS[name].value, flags.FLAGS[name].present = value, present


def _state_of(found):
    return {name: (found[name].value, found[name].present) for name in found}


def test_every_task_has_one():
    assert set(recipes.RECIPES) == set(PUZZLES)
    known = set(reasoning.CONFIGURATION_FLAGS)
    assert all(set(recipe) <= known for recipe in recipes.RECIPES.values())


def test_the_task_s_values(values):
    found = values("--task=maze", "--workdir=x")
    assert found["settling_penalty"].value == recipes.RECIPES["maze"]["settling_penalty"]
    assert found["adjoint"].value == "unrolled"


def test_what_is_given_stays(values):
    found = values("--task=maze", "--workdir=x", "--settling_penalty=0", "--width=12")
    assert found["settling_penalty"].value == 0.0
    assert found["width"].value == 12


@pytest.mark.parametrize(("cell", "block"), [("convolution", 64), ("mixing", 0)])
def test_what_is_not_used_stays_away(values, cell, block):
    """A block is for cells that say how far they see: the recipe does not give it to others."""
    found = values("--task=prefix_sums", "--workdir=x", f"--cell={cell}")
    assert found["block"].value == block
