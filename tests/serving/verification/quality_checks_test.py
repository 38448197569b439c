"""The card's table of quality, measured anew."""

import numpy as np
import pytest

from tfdeq.serving.verification import quality, quality_checks

WINDOWS = np.arange(20, dtype=np.int32).reshape(4, 5)
TOLERANCES = (1e-1, 1e-3)


def answers():
    rows = len(WINDOWS)
    return [
        {
            "log_likelihood": np.full(WINDOWS.shape, -1.0 - tolerance, np.float32),
            "residual": np.full(rows, tolerance / 2, np.float32),
            "steps": np.full(rows, 5, np.int32),
            "status": np.zeros(rows, np.int32),
        }
        for tolerance in TOLERANCES
    ]


def measured():
    table = quality.TextTable(WINDOWS)
    table.tolerances = TOLERANCES
    return table


def table():
    return [
        measured().row(tolerance, [part])
        for tolerance, part in zip(TOLERANCES, answers(), strict=True)
    ]


def quality_of(rows):
    return quality_checks.Quality(measured(), rows)


def test_every_row_is_asked_for_as_a_request_names_it():
    asked = quality_of(table()).requests()
    assert [request.signature for request in asked] == ["score"] * 2
    for request, tolerance in zip(asked, TOLERANCES, strict=True):
        np.testing.assert_array_equal(request.inputs["tokens"], WINDOWS)
        np.testing.assert_array_equal(
            request.inputs["tolerance"], np.full(4, np.float32(tolerance))
        )
        assert not request.inputs["max_steps"].any()


def test_the_table_of_the_version_passes():
    assert quality_of(table()).check(answers(), "c").passed
    rows = table()
    rows[0]["bits_per_token"] += 1e-5  # rounding
    assert quality_of(rows).check(answers(), "c").passed


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        *(("bits_per_token", 1.5), ("steps", 4.0), ("converged", 0.5), ("residual", 1e-5)),
        *(("largest_residual", 1e-5), ("steps", None), ("bits_per_token", float("nan"))),
    ],
)
def test_another_figure_is_found(entry, value):
    rows = table()
    rows[1][entry] = value
    check = quality_of(rows).check(answers(), "c")
    assert not check.passed
    assert f"at 0.001: {entry} is" in check.text


@pytest.mark.parametrize("change", [lambda rows: rows[:1], lambda rows: "text", lambda rows: [3]])
def test_a_table_of_other_rows(change):
    found = quality_of(change(table()))
    assert found.requests() == []
    check = found.check([], "c")
    assert not check.passed
    assert "not of the tolerances [0.1, 0.001]" in check.text


def test_what_cannot_be_measured():
    for found in (quality_of(None), quality_checks.Quality(None, table())):
        assert found.requests() == []
        assert found.check([], "c").passed
