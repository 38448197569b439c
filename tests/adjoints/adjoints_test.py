"""Tests of tfdeq.adjoints: the registry."""

import pytest

from tfdeq import adjoints


@pytest.mark.parametrize("name", adjoints.REGISTRY)
def test_get_builds_the_registered_class(name):
    adjoint = adjoints.get(name)
    assert type(adjoint) is adjoints.REGISTRY[name]
    assert adjoints.get(adjoint) is adjoint


def test_unknown_name_lists_the_known_ones():
    known = ", ".join(sorted(adjoints.REGISTRY))
    with pytest.raises(ValueError, match=f"'backprop'.*Known adjoints: {known}"):
        adjoints.get("backprop")


@pytest.mark.parametrize("value", [None, 3, adjoints.Implicit])
def test_neither_name_nor_adjoint(value):
    with pytest.raises(TypeError, match="adjoint must be a name or a tfdeq adjoint object"):
        adjoints.get(value)
