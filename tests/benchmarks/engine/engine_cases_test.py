import numpy as np
import pytest

from benchmarks.engine import engine_cases


@pytest.mark.parametrize("name", engine_cases.QUICK_CASES)
def test_arrays_are_float32_of_the_cases_shape_and_the_same_each_time(name):
    case = engine_cases.QUICK_CASES[name]
    arrays = engine_cases.make_arrays(case)
    assert list(arrays["x"].shape) == list(arrays["target"].shape) == case["shape"]
    assert {array.dtype for array in arrays.values()} == {np.dtype("float32")}
    again = engine_cases.make_arrays(case)
    assert all(np.array_equal(arrays[key], again[key]) for key in arrays)
    assert "w/U" in arrays
    assert str(case["shape"][0]) in engine_cases.describe(case)


def test_the_gain_scales_the_recurrent_weights_alone():
    case = engine_cases.QUICK_CASES["dense"]
    one, two = (engine_cases.make_arrays({**case, "gain": gain}) for gain in (0.5, 1.0))
    np.testing.assert_allclose(two["w/W"], 2 * one["w/W"], rtol=1e-6)
    np.testing.assert_array_equal(two["w/U"], one["w/U"])


def test_quick_cases_are_the_cases_made_small():
    assert list(engine_cases.QUICK_CASES) == list(engine_cases.CASES)
    for name, case in engine_cases.CASES.items():
        assert engine_cases.QUICK_CASES[name]["kind"] == case["kind"]
