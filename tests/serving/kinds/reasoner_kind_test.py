"""Served reasoners: `solve`, and puzzles of several sizes in one request."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tfdeq.cells import RecallConvolution, TokenMixing
from tfdeq.models import Reasoner
from tfdeq.serving.kinds.reasoner_kind import ReasonerKind, solve_requests
from tfdeq.serving.kinds.runs import of_model
from tfdeq.serving.signatures.reasoner_signatures import MOST_STARTS
from tfdeq.solvers import FixedPointIteration

PUZZLES = np.random.default_rng(0).integers(0, 3, (8, 5)).astype("int32")


def _model(cell=None):
    keras.utils.set_random_seed(0)
    solver = FixedPointIteration(max_steps=12, tolerance=1e-4)
    model = Reasoner(3, 2, cell or RecallConvolution(8, rank=1, recurrent_scale=0.5), solver)
    model.build((None, 5))
    return model


@pytest.fixture(scope="module")
def kind():
    return ReasonerKind(_model(), examples={"puzzle": PUZZLES}, explicit=True)


@pytest.fixture(scope="module")
def signatures(kind):
    return kind.signatures(batching=None)


@pytest.fixture(scope="module")
def solve(signatures):
    return signatures["solve"].function


def _given(puzzles, starts, tolerance=0.0, max_steps=0):
    rows = len(puzzles)
    return {
        "puzzle": tf.constant(puzzles),
        "tolerance": tf.fill([rows], float(tolerance)),
        "max_steps": tf.fill([rows], max_steps),
        "starts": tf.constant(starts, tf.int32),
    }


def test_one_start_is_the_model_itself(kind, solve):
    found = solve(**_given(PUZZLES, [0] * 8))
    logits, solution = kind.model(PUZZLES, return_solution=True)
    np.testing.assert_array_equal(found["answer"], np.argmax(logits, -1))
    np.testing.assert_allclose(found["residual"], solution.residual, rtol=1e-3)  # near rounding
    np.testing.assert_array_equal(found["steps"], solution.steps)
    np.testing.assert_array_equal(found["status"], solution.status)
    assert found["agreement"].numpy().tolist() == [1.0] * 8


@pytest.mark.slow
def test_several_starts_are_best_of(kind, solve):
    starts = [1, 4, 2, 7, 1, 1, 3, 5]
    found = solve(**_given(PUZZLES, starts, tolerance=1e-2))
    best = tfdeq.best_of(kind.model, PUZZLES, starts, max_steps=100, tolerance=1e-2)
    np.testing.assert_array_equal(found["answer"], np.argmax(best.outputs, -1))
    np.testing.assert_allclose(found["agreement"], best.agreement)
    np.testing.assert_array_equal(found["steps"], best.steps)


def test_more_starts_than_there_may_be(solve):
    rough = {"tolerance": 1e-9, "max_steps": 2}
    found = solve(**_given(PUZZLES[:2], [10**6, 1], **rough))
    assert found["steps"].numpy().tolist() == [2 * MOST_STARTS, 2]


def test_a_puzzle_beside_a_larger_one(solve):
    padded = np.full((2, 9), -1, "int32")
    padded[0, :5] = PUZZLES[0]
    padded[1] = 1
    beside = solve(**_given(padded, [3, 1]))
    alone = solve(**_given(PUZZLES[:1], [3]))
    # Noise is drawn for all places of the request, so the starts differ, but the answer does not.
    np.testing.assert_array_equal(beside["answer"][0, :5], alone["answer"][0])
    assert beside["answer"][0, 5:].numpy().tolist() == [-1] * 4
    one, other = (solve(**_given(given, [1] * len(given))) for given in (padded, PUZZLES[:1]))
    assert one["steps"][0] == other["steps"][0]


def test_signatures_and_their_sizes(signatures):
    assert set(signatures) == {"serving_default", "encode", "step", "solve"}
    spec = signatures["solve"].function.structured_input_signature[1]["puzzle"]
    assert spec.shape.as_list() == [None, None]


@pytest.mark.slow
def test_a_cell_of_one_size():
    model = _model(TokenMixing(8, places=5))
    found = of_model(model, examples={"puzzle": PUZZLES}).signatures(batching=None)["solve"]
    spec = found.function.structured_input_signature[1]["puzzle"]
    assert spec.shape.as_list() == [None, 5]
    assert [request.name for request in solve_requests(PUZZLES, open_sizes=False)] == [
        "one start",
        "several starts",
    ]


def test_explicit_applications_have_nothing_to_solve():
    keras.utils.set_random_seed(0)
    model = Reasoner(3, 2, RecallConvolution(8, rank=1), explicit_steps=3)
    model.build((None, 5))
    assert "solve" not in ReasonerKind(model, explicit=True).signatures(batching=None)
