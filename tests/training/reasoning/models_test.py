"""Models of puzzles from a configuration."""

import pytest

from tfdeq.cells import (
    ComposedCell,
    GroupAttention,
    NestedRecursion,
    RecallConvolution,
    TokenMixing,
)
from tfdeq.data.puzzles import get
from tfdeq.training.reasoning.models import make_model

CONFIG = {
    "size": 0, "cell": "convolution", "layers": 1, "width": 12, "attention_heads": 6, "depth": 0,
    "recursion": False, "inner_steps": 2, "segments": 0, "path_noise": 0.1, "start_noise": 0.5,
    "block": 0, "precision": "float32",
    "solver": "fixed_point_iteration", "max_steps": 4, "tolerance": 1e-3,
    "adjoint": "unrolled", "adjoint_steps": 2,
    "jacobian_penalty": 0.0, "jacobian_penalty_fraction": 0.25, "jacobian_penalty_power_steps": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("task", "settings", "cell"),
    [
        ("prefix_sums", {}, RecallConvolution),
        ("maze", {"size": 5, "layers": 2}, ComposedCell),
        ("maze", {"size": 5, "cell": "mixing"}, TokenMixing),
        ("maze", {"size": 5, "recursion": True}, NestedRecursion),
        ("sudoku", {"cell": "attention"}, GroupAttention),
        ("reachability", {"cell": "attention"}, GroupAttention),
    ],
)
def test_cells(task, settings, cell):
    puzzle = get(task)
    config = {**CONFIG, **settings}
    model = make_model(config, puzzle)
    assert isinstance(model.cell, cell)
    assert model.start_noise == 0.5
    assert model.path_noise == 0  # has no effect if no step continues from another
    places = (config["size"] or puzzle.size,) * puzzle.rank
    inputs, _ = puzzle.make(2, places[0], 0, puzzle.grades[0] if puzzle.grades else None)
    assert model(inputs).shape == (2, *places, puzzle.classes)


def test_boxes_are_those_of_sudoku_alone():
    kinds = {
        task: make_model({**CONFIG, "cell": "attention"}, get(task)).cell.kinds
        for task in ("sudoku", "reachability")
    }
    assert kinds == {"sudoku": ("row", "column", "box"), "reachability": ("row", "column")}


def test_attention_over_a_line():
    with pytest.raises(ValueError, match="--task=prefix_sums are lines. Give --cell=convolution"):
        make_model({**CONFIG, "cell": "attention"}, get("prefix_sums"))
