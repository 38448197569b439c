import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, DenseCell, in_mode
from tfdeq.cell_calls.call_limits import call_limits, drawn_training_steps
from tfdeq.cell_calls.scoped_call import ScopedCall
from tfdeq.numerics.limits import Limits

SOLVER = tfdeq.Broyden(max_steps=9, tolerance=1e-4)


def _found(given=None, own=None, scope=None):
    z0 = tf.zeros([2, 3])
    with scope or tfdeq.SolveScope():
        return call_limits(ScopedCall("deq"), SOLVER, z0, given or Limits(), own, trace=False)


def test_a_call_comes_before_a_scope_and_a_scope_before_the_layer():
    scope = tfdeq.SolveScope(max_steps=[5, 0], tolerance=0.1)
    assert _found() == Limits()  # the solver's
    assert _found(own=7).max_steps == 7
    found = _found(own=7, scope=scope)
    np.testing.assert_array_equal(found.max_steps, [5, 7])
    np.testing.assert_allclose(found.tolerance, [0.1, 0.1])
    assert found.patience is None
    assert found.absolute_tolerance is None
    assert _found(Limits(max_steps=3), own=7, scope=scope).max_steps == 3


def test_a_number_is_not_drawn():
    assert drawn_training_steps(None, next_seed=None) is None
    assert drawn_training_steps(4, next_seed=None) == 4


@pytest.mark.parametrize("mode", MODES)
def test_training_draws_its_budget(mode):
    solver = tfdeq.FixedPointIteration(max_steps=9, tolerance=1e-12)
    layer = tfdeq.DEQLayer(DenseCell(4, gain=0.9), solver, training_max_steps=(3, 6))
    x = tf.ones([2, 4])
    call = {
        training: in_mode(lambda t=training: layer(x, training=t, return_solution=True), mode)
        for training in (True, False)
    }
    layer(x)
    drawn = [call[True]().steps.numpy() for _ in range(40)]
    assert {int(steps[0]) for steps in drawn} == {3, 4, 5, 6}
    assert all(steps[0] == steps[1] for steps in drawn)
    assert call[False]().steps.numpy().tolist() == [9, 9]
    again = tfdeq.DEQLayer.from_config(layer.get_config())
    assert again.training_max_steps == (3, 6)


def test_training_budget_out_of_range():
    fixed = tfdeq.DEQLayer(DenseCell(4), training_max_steps=2)
    assert fixed(tf.ones([2, 4]), training=True, return_solution=True).steps.numpy().max() <= 2
    for value in ((6, 3), 31, (3, 40), (1, 2, 3)):
        with pytest.raises(ValueError, match="must be a number or a pair"):
            tfdeq.DEQLayer(DenseCell(4), training_max_steps=value)
    with pytest.raises(ValueError, match="training_max_steps must be an integer of at least 1"):
        tfdeq.DEQLayer(DenseCell(4), training_max_steps=0)
