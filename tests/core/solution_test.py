"""Tests of tfdeq.solution."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import DenseCell


@pytest.mark.parametrize("status", list(tfdeq.Status))
@pytest.mark.parametrize("kind", [int, np.int32, tf.constant, lambda status: status])
def test_describe_names_the_status(status, kind):
    text = tfdeq.describe(kind(status))
    assert text.startswith(status.name.lower())


@pytest.mark.parametrize(
    "status", [status for status in tfdeq.Status if status != tfdeq.Status.CONVERGED]
)
def test_describe_says_cause_and_remedy(status):
    text = tfdeq.describe(status)
    assert "Cause:" in text
    assert "jacobian_penalty" in text
    assert "damping" in text


@pytest.mark.parametrize("status", [-1, 4])
def test_describe_refuses_other_numbers(status):
    with pytest.raises(ValueError, match=rf"0 \(CONVERGED\).*received {status}\."):
        tfdeq.describe(status)


def test_converged_follows_status():
    status = tf.constant([int(member) for member in tfdeq.Status])
    solution = tfdeq.Solution(tf.zeros([4, 1]), tf.zeros([4]), tf.ones([4], tf.int32), status)
    assert solution.converged.numpy().tolist() == [True, False, False, False]
    assert solution.converged.dtype == tf.bool


@pytest.mark.slow
def test_solution_passes_through_a_function():
    x = tf.constant([[1.0], [2.0]])

    @tf.function
    def solve():
        return tfdeq.fixed_point(lambda z, x: 0.5 * z + x, tf.zeros_like(x), (x,))

    solution = solve()
    assert isinstance(solution, tfdeq.Solution)
    assert solution.residual.dtype == tf.float32
    assert solution.steps.dtype == solution.status.dtype == tf.int32
    assert solution.converged.numpy().all()


def test_every_field_is_an_operation_of_a_functional_model(tmp_path):
    inputs = keras.Input((4,))
    layer = tfdeq.DEQLayer(DenseCell(4), tfdeq.FixedPointIteration(max_steps=3, tolerance=1e-3))
    solution = layer(inputs, return_solution=True)
    assert solution.converged.shape == (None,)
    assert solution.converged.dtype == "bool"
    fields = [solution.z, solution.residual, solution.steps, solution.status]
    model = keras.Model(inputs, [*fields, solution.converged])
    x = tf.constant([[0.0] * 4, [1.0, -2.0, 3.0, 0.5]])
    *_, status, converged = model(x)
    assert converged.numpy().tolist() == (status.numpy() == 0).tolist() == [True, False]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded(x)[-1].numpy().tolist() == [True, False]
