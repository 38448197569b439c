"""How an answer settles: the states of a solve, and a picture of every kind of puzzle."""

import keras
import numpy as np
import pytest

from tfdeq.cells import RecallConvolution
from tfdeq.data.puzzles import PUZZLES, get
from tfdeq.models import Reasoner
from tfdeq.solvers import FixedPointIteration
from tfdeq.training.reasoning import settling


def _model(puzzle):
    keras.utils.set_random_seed(0)
    cell = RecallConvolution(6, puzzle.rank, recurrent_scale=0.2)
    model = Reasoner(puzzle.tokens, puzzle.classes, cell, FixedPointIteration(max_steps=40))
    model.build((None, *[puzzle.size] * puzzle.rank))
    return model


def test_the_states_are_those_of_the_solve():
    puzzle = get("prefix_sums")
    model, (inputs, _) = _model(puzzle), puzzle.make(1, 12, 0, None)
    found = settling.record(model, inputs[0], 40, 1e-3)
    steps = len(found.residual)
    _, solution = model(inputs, max_steps=40, tolerance=1e-3, return_solution=True)
    # The last evaluation detects that the state has settled.
    assert steps == int(solution.steps[0])
    np.testing.assert_allclose(found.residual[-1], solution.residual[0], rtol=1e-3)  # float32
    for k in (1, steps):
        logits = model(inputs, explicit_steps=k)
        np.testing.assert_allclose(
            found.probability[k - 1], keras.ops.softmax(logits)[0], atol=1e-5
        )
    assert found.moved.shape == (steps, 12)
    assert len(settling.record(model, inputs[0], 2, 1e-3).residual) == 2


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n == "prefix_sums" else pytest.mark.slow)
        for n in sorted(PUZZLES)
    ],
)
def test_pictures(name, tmp_path):
    puzzle = get(name)
    inputs, _ = puzzle.make(1, puzzle.size, 0, puzzle.grades[0] if puzzle.grades else None)
    found = settling.record(_model(puzzle), inputs[0], 3, 1e-3)
    path = settling.draw(puzzle, inputs[0], found, str(tmp_path))
    with open(path, "rb") as file:
        assert file.read(4) == (b"\x89PNG" if puzzle.rank == 1 else b"GIF8")
