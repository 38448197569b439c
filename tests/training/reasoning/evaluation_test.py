"""Figures of a model's answers to puzzles."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdeq import best_of
from tfdeq.cells import RecallConvolution
from tfdeq.models import Reasoner
from tfdeq.solvers import FixedPointIteration
from tfdeq.training.reasoning.evaluation import exact, places, puzzle_evaluator

CONFIG = {"depth": 0, "max_steps": 6, "jit_compile": False, "block": 0, "start_noise": 0.0}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    solver = FixedPointIteration(max_steps=6, tolerance=1e-3)
    made = Reasoner(2, 2, RecallConvolution(6, rank=1), solver)
    made.build((None, 3))
    return made


def _puzzles(count=40):
    random = np.random.default_rng(0)
    return tuple(random.integers(0, 2, (count, 3)).astype("int32") for _ in range(2))


def test_exact_and_places():
    logits = tf.one_hot([[[0, 1], [1, 1]], [[0, 0], [1, 0]]], 2)
    targets = tf.constant([[[0, 1], [1, 1]], [[0, 1], [1, 0]]])
    assert exact(targets, logits).numpy().tolist() == [1.0, 0.0]
    assert places(targets, logits).numpy().tolist() == [1.0, 0.75]


def test_figures(model):
    """Computed by hand from the model's own answers."""
    inputs, targets = _puzzles()
    logits, solution = model(inputs, return_solution=True)
    right = (np.argmax(logits, -1) == targets).all(1)
    settled = solution.converged.numpy()
    assert 0 < settled.sum() < len(settled)  # both kinds occur
    found = puzzle_evaluator(model, (inputs, targets), CONFIG, [1.0]).evaluate()
    expected = {
        "exact": right.mean(),
        "places": (np.argmax(logits, -1) == targets).mean(),
        "settled": settled.mean(),
        "right_if_settled": right[settled].mean(),
        "right_if_unsettled": right[~settled].mean(),
        "residual": solution.residual.numpy().mean(),
        "steps": solution.steps.numpy().mean(),
        "loss": keras.losses.sparse_categorical_crossentropy(
            targets, logits, from_logits=True
        ).numpy().mean(),
    }  # fmt: skip
    # The residual is a difference of float32 states that agree in three digits.
    assert found.pop("residual") == pytest.approx(expected.pop("residual"), rel=1e-3)
    assert found == pytest.approx(expected, rel=1e-5)


def test_what_there_is_nothing_of_is_left_out(model):
    evaluator = puzzle_evaluator(model, _puzzles(8), CONFIG, [1.0, 64.0])
    found = evaluator.by_budget()["64.0"]
    assert found["settled"] == 1.0
    assert found["right_if_settled"] == found["exact"]
    assert "right_if_unsettled" not in found


def test_explicit_applications_have_nothing_settled(model):
    config = {**CONFIG, "depth": 3}
    found = puzzle_evaluator(model, _puzzles(8), config, [1.0]).evaluate()
    assert set(found) == {"exact", "places", "loss"}


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.slow
def test_several_starts(model, jit_compile):
    """The answers are those of best_of, and the steps those of all starts."""
    inputs, targets = _puzzles()
    best = best_of(model, inputs, 3, 6, noise=0.5)
    config = {**CONFIG, "jit_compile": jit_compile, "start_noise": 0.5}
    found = puzzle_evaluator(model, (inputs, targets), config, [1.0], starts=3).evaluate()
    right = (np.argmax(best.outputs, -1) == targets).all(1)
    settled = best.converged.numpy()
    assert found["exact"] == pytest.approx(right.mean(), rel=1e-6)
    assert found["settled"] == pytest.approx(settled.mean(), rel=1e-6)
    assert found["steps"] == pytest.approx(best.steps.numpy().mean(), rel=1e-6)
    agreed = settled & (best.agreement.numpy() > 0.5)
    assert found["agreed"] == pytest.approx(agreed.mean(), rel=1e-6)
    assert found["right_if_agreed"] == pytest.approx(right[agreed].mean(), rel=1e-6)
    alone = puzzle_evaluator(model, (inputs, targets), CONFIG, [1.0]).evaluate()
    assert found["settled"] >= alone["settled"]  # the usual start is one of them
    assert found["steps"] > alone["steps"]
