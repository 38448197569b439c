"""Tests of tfdeq.solvers: the registry."""

import pytest

from tfdeq import solvers


@pytest.mark.parametrize("name", solvers.REGISTRY)
def test_get_builds_the_registered_class(name):
    assert type(solvers.get(name, max_steps=5)) is solvers.REGISTRY[name]
    assert solvers.get(name, max_steps=5).max_steps == 5


def test_get_returns_an_object_itself():
    solver = solvers.Anderson(memory=2)
    assert solvers.get(solver) is solver


def test_unknown_name_lists_the_known_ones():
    known = ", ".join(sorted(solvers.REGISTRY))
    with pytest.raises(ValueError, match=f"'newton'.*Known solvers: {known}"):
        solvers.get("newton")


@pytest.mark.parametrize("value", [None, 3, solvers.Broyden])
def test_neither_name_nor_solver(value):
    with pytest.raises(TypeError, match="solver must be a name or a tfdeq solver object; received"):
        solvers.get(value)
