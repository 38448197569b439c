import math

import numpy as np
import pytest

from tfdeq.training.report import plotting


def test_defined_drops_missing_values():
    curves = {"step": [10, 20, 20, 30, None], "loss": [3.0, None, 2.5, math.nan, 2.0]}
    steps, values = plotting.defined(curves, "loss")
    np.testing.assert_array_equal(steps, [10, 20])
    np.testing.assert_array_equal(values, [3.0, 2.5])


@pytest.mark.parametrize("curves", [{}, {"step": [1]}, {"loss": [1.0]}])
def test_a_curve_that_is_not_there_is_empty(curves):
    steps, values = plotting.defined(curves, "loss")
    assert len(steps) == len(values) == 0


@pytest.mark.parametrize("value", [None, "3", True, math.nan, math.inf, [1.0]])
def test_what_is_no_finite_number_is_none(value):
    assert plotting.number(value) is None
