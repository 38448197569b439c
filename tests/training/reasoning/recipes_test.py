"""Recipes: a task's flags if the user does not set them."""

import pytest
from absl import flags

import tfdeq.training.reasoning.flags  # noqa: F401  defines what `block` is used with
from tfdeq.data.puzzles import PUZZLES
from tfdeq.training.reasoning import recipes


def _applied(*arguments):
    """Returns separate flags, set by a command line and completed by a recipe."""
    values = flags.FlagValues()
    flags.DEFINE_string("task", "prefix_sums", "", flag_values=values)
    flags.DEFINE_string("cell", "convolution", "", flag_values=values)
    flags.DEFINE_integer("depth", 0, "", flag_values=values)
    names = {name for recipe in recipes.RECIPES.values() for name in recipe} - set(values)
    for name in names:
        flags.DEFINE_string(name, "the default", "", flag_values=values)
    values(["trainers.reasoning", *arguments])
    recipes.apply(values)
    return values


def test_every_task_has_one():
    assert set(recipes.RECIPES) == set(PUZZLES)


def test_the_task_s_values():
    found = _applied("--task=maze")
    assert found["settling_penalty"].value == recipes.RECIPES["maze"]["settling_penalty"]
    assert found["adjoint"].value == "unrolled"


def test_what_is_given_stays():
    found = _applied("--task=maze", "--settling_penalty=0")
    assert found["settling_penalty"].value == "0"


@pytest.mark.parametrize(("cell", "block"), [("convolution", 64), ("mixing", "the default")])
def test_what_is_not_used_stays_away(cell, block):
    """`block` is for cells with the attribute `reach`; the recipe does not set it for others."""
    assert _applied("--task=prefix_sums", f"--cell={cell}")["block"].value == block
