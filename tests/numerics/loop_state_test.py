import numpy as np
import tensorflow as tf

import tfdeq
from tfdeq.numerics.function_evaluation import residual_of
from tfdeq.numerics.limits import Limits
from tfdeq.numerics.loop_state import (
    RUNNING,
    LoopSettings,
    LoopState,
    booked,
    is_small,
    results_of,
    running_of,
    with_records,
)
from tfdeq.numerics.state_layout import StateLayout
from tfdeq.solution import Status

SOLVER = tfdeq.Anderson(max_steps=3, tolerance=1e-2)


def _start(z, iterates=()):
    batch = tf.shape(z)[:1]
    largest, zeros = tf.fill(batch, z.dtype.max), tf.zeros(batch, tf.int32)
    status, scale = tf.fill(batch, RUNNING), tf.ones(batch, z.dtype)
    recorded = tf.tile(z[:, None], [1, len(iterates), 1]) if iterates else ()
    trace = tf.fill([z.shape[0], 3], float("nan"))
    k = tf.constant(0)
    return LoopState(
        k, z, z, largest, largest, zeros, zeros, status, scale, (), (), recorded, trace
    )


def _evaluated(images, max_steps=3, iterates=()):
    """Returns the loop's state after z = 1 was evaluated to each row of images [n, B] in sequence."""
    z = tf.ones([len(images[0]), 1])
    settings = LoopSettings(SOLVER, StateLayout(z), False, False, None, iterates)
    state = _start(z, iterates)
    limits = Limits(max_steps=max_steps).resolved(SOLVER, tf.shape(z)[:1], z.dtype)
    for image in images:
        f_z = tf.constant(image, tf.float32)[:, None]
        found = residual_of(z, f_z, with_unit=tf.constant(False))
        before = state
        state = booked(settings, state, f_z, found, limits)
        state = with_records(settings, before, state, found)._replace(k=state.k + 1)
    return state


def test_each_sample_is_booked_until_it_is_done():
    state = _evaluated([[2.0, 1.001, np.nan, 4.0], [3.0, 9.0, 9.0, np.nan], [1.5, 9.0, 9.0, 9.0]])
    best_z, residual, steps, status, _, trace = results_of(state)
    expected = [Status.MAX_STEPS, Status.CONVERGED, Status.NON_FINITE, Status.NON_FINITE]
    np.testing.assert_array_equal(status[:3], expected[:3])
    np.testing.assert_array_equal(steps[:3], [3, 1, 1])
    assert not running_of(state).numpy().any()
    # The best residual so far: |1.5 − 1| / 1.5.
    np.testing.assert_allclose(best_z[:2, 0], [1.5, 1.001])
    np.testing.assert_allclose(residual[:2], [1 / 3, 0.001 / 1.001], rtol=1e-4)
    np.testing.assert_allclose(trace[0], [1 / 2, 2 / 3, 1 / 3], rtol=1e-5)
    assert np.isnan(trace[1, 1:]).all()


def test_a_sample_that_converges_with_its_last_evaluation_has_converged():
    state = _evaluated([[1.001, 5.0]], max_steps=1)
    np.testing.assert_array_equal(state.status, [Status.CONVERGED, Status.MAX_STEPS])


def test_states_are_recorded_by_the_number_of_evaluations():
    state = _evaluated([[2.0], [1.5], [1.2]], iterates=(2, 9))
    np.testing.assert_allclose(state.recorded[0, :, 0], [1.5, 1.2])


def test_small_is_a_matter_of_the_known_size():
    assert is_small(tf.zeros([3, 1024]))
    assert not is_small(tf.zeros([3, 1025]))
