"""Tests of tfdeq.solvers.solver: the common parts of all solvers."""

import dataclasses
import re

import pytest
import tensorflow as tf

from tfdeq import solvers
from tfdeq.solvers.solver import (
    Solver,
    require_damping,
    require_positive,
    require_positive_integer,
)


@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, True, "3", None])
def test_positive_integer_refused(value):
    message = f"max_steps must be an integer of at least 1; received {value!r}."
    with pytest.raises(ValueError, match=re.escape(message)):
        require_positive_integer("max_steps", value)


@pytest.mark.parametrize("value", [0, 0.0, -1e-3, float("nan"), float("inf"), "small", None])
def test_positive_refused(value):
    message = f"tolerance must be a finite number greater than 0; received {value!r}."
    with pytest.raises(ValueError, match=re.escape(message)):
        require_positive("tolerance", value)


@pytest.mark.parametrize("value", [0.0, -0.5, 1.01, float("nan")])
def test_damping_refused(value):
    with pytest.raises(ValueError, match=rf"damping must be .*received {value}"):
        require_damping(value)


@pytest.mark.parametrize("value", [1e-3, 0.5, 1.0, 1])
def test_damping_accepted(value):
    require_damping(value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("max_steps", 0), ("max_steps", 2.5), ("tolerance", 0.0), ("tolerance", -1.0)],
)
@pytest.mark.parametrize("name", solvers.REGISTRY)
def test_every_solver_checks_its_settings(name, setting, value):
    with pytest.raises(ValueError, match=rf"{setting} must be .*received {value}"):
        solvers.get(name, **{setting: value})


@pytest.mark.parametrize("name", solvers.REGISTRY)
def test_every_solver_refuses_unknown_settings(name):
    with pytest.raises(TypeError, match="threshold"):
        solvers.get(name, threshold=3)


@pytest.mark.parametrize("name", solvers.REGISTRY)
def test_every_solver_is_frozen_and_comes_back_from_its_config(name):
    solver = solvers.get(name, max_steps=7, tolerance=1e-2)
    assert type(solver).from_config(solver.get_config()) == solver
    with pytest.raises(dataclasses.FrozenInstanceError):
        solver.max_steps = 3


def test_incomplete_solver_says_what_it_lacks():
    z = tf.zeros([1, 1])
    with pytest.raises(TypeError, match=r"must define initial_state\(\)"):
        Solver().initial_state(z)
    with pytest.raises(TypeError, match=r"must define step\(\)"):
        Solver().step((), 0, z, z)
