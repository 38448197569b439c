"""Tests of tfdeq.numerics.closures: captured tensors of f that would need a gradient."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, fast, in_mode

NAMES = ("broyden", "newton_krylov")


def solve(x, scale, solver="broyden", **settings):
    return tfdeq.fixed_point(lambda z, x: scale * z + x, tf.zeros_like(x), (x,), solver, **settings)


@pytest.mark.parametrize("solver", NAMES)
@pytest.mark.parametrize("batched", [None, [0]])
def test_a_watched_tensor_is_refused(solver, batched):
    x, scale = tf.ones([2, 3]), tf.constant(0.5)
    with tf.GradientTape() as tape:
        tape.watch(scale)
        with pytest.raises(ValueError, match="not in args"):
            solve(x, scale, solver, batched_args=batched)


@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("solver", NAMES)
@pytest.mark.parametrize("batched", [None, [0]])
def test_an_argument_of_the_traced_function_is_refused(solver, batched, mode):
    x, scale = tf.ones([2, 3]), tf.constant(0.25)
    function = in_mode(lambda x, scale: solve(x, 2.0 * scale, solver, batched_args=batched), mode)
    with pytest.raises(ValueError, match=r"not in args \(mul.*Pass it, f\(z, \*args\)"):
        function(x, scale)


def test_a_trainable_variable_read_outside_is_refused():
    x, variable = tf.ones([2, 3]), tf.Variable(0.25)
    frozen = tf.Variable(0.25, trainable=False)

    def of(variable):
        return tf.function(lambda x: solve(x, 2.0 * variable), autograph=False)(x)

    with pytest.raises(ValueError, match="not in args"):
        of(variable)
    assert of(frozen).converged.numpy().all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("solver", fast(["broyden"], NAMES))
def test_what_no_gradient_goes_through_may_be_used(solver, mode):
    x, scale = tf.ones([2, 3]), tf.constant(0.25)

    def run(x, scale):
        whole = tf.cast(4.0 * scale, tf.int32)
        stopped = tf.stop_gradient(scale) + 0.1 * tf.cast(whole, tf.float32) + tf.constant(0.0)
        return solve(x, stopped, solver, tolerance=1e-6, batched_args=[0])

    with tf.GradientTape() as tape:
        tape.watch(scale)
        solution = in_mode(run, mode)(x, scale)
    np.testing.assert_allclose(solution.z, np.full([2, 3], 1 / 0.65), rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_solve_inside_of_another_takes_the_outer_state_as_an_argument(mode):
    x = tf.ones([2, 3])

    def nested(refused):
        def outer(z, x):
            inner = (lambda w, *_: 0.25 * w + z) if refused else (lambda w, z: 0.25 * w + z)
            return 0.25 * tfdeq.fixed_point(inner, tf.zeros_like(z), (x if refused else z,)).z + x

        with tf.GradientTape() as tape:
            tape.watch(x)
            z = tfdeq.fixed_point(outer, tf.zeros_like(x), (x,), tolerance=1e-6).z
        return tape.gradient(z, x)

    # z = z / 3 + x
    np.testing.assert_allclose(in_mode(lambda: nested(False), mode)(), np.full([2, 3], 1.5), 2e-3)
    with pytest.raises(ValueError, match="not in args"):
        in_mode(lambda: nested(True), mode)()


def test_a_layer_reads_frozen_weights_and_statistics():
    class Cell(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.norm = keras.layers.BatchNormalization()
            self.dense = keras.layers.Dense(3, kernel_initializer="zeros")
            self.dense.trainable = False

        def call(self, z, x, training=None):
            return keras.ops.tanh(self.dense(z) + self.norm(x, training=training))

    layer = tfdeq.DEQLayer(Cell())
    x = tf.random.stateless_normal([4, 3], [1, 2])
    for training in (False, True):
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = layer(x, training=training)
        assert np.isfinite(tape.gradient(z, x)).all()
