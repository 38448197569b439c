"""Which calls of a layer are solved by blocks, and their results."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tfdeq.cell_calls.block_call import BlockCall
from tfdeq.cells import RecallConvolution
from tfdeq.solvers import FixedPointIteration


@pytest.mark.parametrize(
    ("compaction", "iterates", "trace", "expected"),
    [
        (True, None, False, True),
        (False, None, False, False),
        (True, [1], False, False),
        (True, None, True, False),
    ],
)
def test_when(compaction, iterates, trace, expected):
    assert BlockCall.fits(compaction, iterates, trace) == expected


@pytest.mark.slow
def test_each_sample_s_tolerance_and_budget_reach_the_solve():
    keras.utils.set_random_seed(0)
    solver = FixedPointIteration(max_steps=200, tolerance=1e-5)
    layer = tfdeq.DEQLayer(RecallConvolution(4, 1, recurrent_scale=0.3), solver, block=8)
    x = tf.constant(np.random.default_rng(0).normal(size=(3, 30, 4)).astype("float32"))

    @tf.function(autograph=False)
    def solve(tolerance, max_steps):
        solution = layer(x, tolerance=tolerance, max_steps=max_steps, return_solution=True)
        return tuple(solution)[:4]

    solution = tfdeq.Solution(*solve(tf.constant([1e-5, 1e-1, 1e-5]), tf.constant([200, 200, 3])))
    assert solution.converged.numpy().tolist() == [True, True, False]
    assert (solution.residual <= [1e-5, 1e-1, 1.0]).numpy().all()
    assert int(solution.steps[2]) == 3


def test_damping_is_refused():
    with pytest.raises(ValueError, match="without damping"):
        BlockCall(RecallConvolution(4), FixedPointIteration(damping=0.5), 8)
