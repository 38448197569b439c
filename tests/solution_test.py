"""Tests of tfdeq.solution."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq


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
