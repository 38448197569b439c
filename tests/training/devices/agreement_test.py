import math

import pytest
import tensorflow as tf

from tfdeq.training.devices import agreement
from tfdeq.training.devices.agreement import Agreement


def test_alone_everything_is_as_it_was_found():
    alone = Agreement(tf.distribute.get_strategy())
    assert (alone.alone, alone.is_chief) == (True, True)
    assert alone.on(0.1) == 0.1
    alone.check_same({"width": 3})


@pytest.fixture
def several(monkeypatch):
    """The behaviour of several workers, tested with one."""
    monkeypatch.setattr(agreement, "several_workers", lambda strategy: True)
    return Agreement(tf.distribute.get_strategy())


@pytest.mark.parametrize("value", [0.1, -1.0, 0.0, 2.0**40 + 1, math.inf, math.nan])
def test_the_chiefs_value_comes_through_to_the_bit(several, value):
    assert not several.alone
    found = several.on(value)
    assert found == value or (math.isnan(found) and math.isnan(value))


def test_another_configuration_than_the_chiefs_is_refused(several, monkeypatch):
    several.check_same({"width": 3, "files": None})
    own = several.on
    monkeypatch.setattr(several, "on", lambda value: own(value) + 1)
    with pytest.raises(
        ValueError, match=r"not those of the first worker.*received \{\"width\": 3\}"
    ):
        several.check_same({"width": 3})
