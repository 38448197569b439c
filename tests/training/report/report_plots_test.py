import math
import xml.etree.ElementTree as ElementTree

import pytest

from tests.support.cases import fast
from tfdeq.training.report import report_plots
from tfdeq.training.report.report_run import Run

CURVES = {
    "step": [10, 20, 20, 30],
    "loss": [3.0, 2.5, None, 2.0],
    "residual": [None, 0.0, None, math.nan],
    "steps": [None, 4.0, None, 5.0],
    "validation_accuracy": [None, None, 0.5, None],
    "validation_residual": [None, None, 1e-2, None],
    "validation_steps": [None, None, 6.0, None],
}
TEST = {
    "by_budget": {"0.5": {"accuracy": 0.8}, "1.0": {"accuracy": None}, "2.0": {"accuracy": 0.9}}
}


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.text]


def test_draws_the_curves_that_any_run_has():
    runs = [Run("a", None, curves=CURVES), Run("b", None, curves={"step": [5], "loss": [4.0]})]
    plots = {plot.title: plot for plot in report_plots.curve_plots(runs)}
    assert list(plots) == [
        "Loss",
        "Validation accuracy",
        "Residual, forward",
        "Solver steps, forward",
    ]
    assert plots["Loss"].alt == (
        "Line plot of loss over training steps. a: 3 at 10 to 2 at 30; b: 4 at 5 to 4 at 5."
    )
    assert {"a", "b"} <= set(texts(plots["Loss"].svg))
    # A run without the curve is not in the legend either.
    assert "b" not in texts(plots["Validation accuracy"].svg)


def test_draws_quality_against_the_budget():
    (plot,) = report_plots.budget_plots([Run("a", {"test": TEST}), Run("b", None)])
    assert plot.title == "Accuracy by budget"
    assert {"0.5", "2"} <= set(texts(plot.svg))


def test_there_may_be_nothing_to_draw():
    runs = [Run("a", {"test": None, "train": []}), Run("b", None, curves={"loss": [1.0]})]
    assert report_plots.curve_plots(runs) == report_plots.budget_plots(runs) == []


@pytest.mark.parametrize(
    "name",
    fast(
        ["$\\frac$", "\x01\ud800"], ["$\\frac$", "_hidden", "<b>&", "\x01\ud800", "数据", "x" * 90]
    ),
)
def test_any_name_gives_a_valid_picture(name):
    runs = [Run(name, None, curves=CURVES), Run("other", None, curves=CURVES)]
    shown = texts(report_plots.curve_plots(runs)[0].svg)
    end = report_plots.printable(name)[-39:]
    assert any(text.endswith(end) for text in shown)


def test_text_follows_the_colour_scheme_and_the_ground_is_clear():
    svg = report_plots.curve_plots([Run("a", None, curves=CURVES)])[0].svg
    assert "prefers-color-scheme:dark" in svg
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "#ffffff" not in svg


def test_a_logarithmic_axis_has_plain_labels():
    residual = {"step": [1, 2, 3], "residual": [1.0, 0.1, 0.01]}
    svg = report_plots.curve_plots([Run("a", None, curves=residual)])[0].svg
    assert "mathdefault" not in svg


def test_the_first_lines_differ_in_colour_and_dashes():
    styles = [report_plots.line_style(index) for index in range(12)]
    assert len(set(styles)) == 12
