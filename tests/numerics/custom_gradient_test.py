import numpy as np
import pytest
import tensorflow as tf

from tests.support.cases import EVERY_MODE, in_mode
from tfdeq.numerics.custom_gradient import custom_gradient_only


def triple(x):
    """3 x, with the gradient 100."""

    @tf.custom_gradient
    def function(x):
        return custom_gradient_only([3.0 * tf.stop_gradient(x)], [x]), lambda d: 100.0 * d

    return function(x)[0]


def value_and_gradient(run):
    def compute(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = run(x)
        return y, tape.gradient(y, x)

    return compute


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_the_custom_gradient_is_as_it_was(mode):
    y, gradient = in_mode(value_and_gradient(triple), mode)(tf.constant([1.0, 2.0]))
    np.testing.assert_array_equal(y, [3.0, 6.0])
    np.testing.assert_array_equal(gradient, [100.0, 100.0])


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_where_it_is_dropped_there_is_an_error_and_no_zero(mode):
    def run(x):
        return tf.vectorized_map(triple, x, fallback_to_while_loop=False)

    x = tf.constant([1.0, 2.0])
    np.testing.assert_array_equal(in_mode(run, mode)(x), [3.0, 6.0])
    with pytest.raises(LookupError, match="drops the custom gradient of a fixed point"):
        in_mode(value_and_gradient(run), mode)(x)


def test_the_gradient_inside_of_what_is_mapped():
    x = tf.constant([1.0, 2.0])
    found = tf.vectorized_map(lambda x: value_and_gradient(triple)(x)[1], x)
    np.testing.assert_array_equal(found, [100.0, 100.0])
