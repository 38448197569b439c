"""Tests of tfdeq.baselines.segment_layer; baselines_test.py tests its subclasses."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdeq.baselines.segment_layer import SegmentLayer, causal_windows, linear


class _RunningSum(SegmentLayer):
    """The simplest layer with a memory: the sum so far."""

    def _memory_spec(self):
        return {"sum": self._place(self.width), "seen": self._place(dtype="int32")}

    def _advance(self, x, memory, training):
        memory = self.initial_memory(x.shape[0]) if memory is None else memory
        sums = memory["sum"][:, None] + keras.ops.cumsum(x, axis=1)
        return sums, {"sum": sums[:, -1], "seen": memory["seen"] + x.shape[1]}


def test_a_layer_gives_only_what_it_remembers_and_does():
    layer, x = _RunningSum(width=3, layers=1), tf.ones([2, 4, 3])
    np.testing.assert_array_equal(layer(x)[:, :, 0], [[1, 2, 3, 4]] * 2)
    memory = layer.initial_memory(2)
    assert memory["sum"].shape == (2, 3)
    for start in (0, 4):
        output, memory = layer(x, memory)
        np.testing.assert_array_equal(output[0, :, 0], np.arange(1, 5) + start)
        np.testing.assert_array_equal(memory["seen"], [start + 4] * 2)


def test_memory_may_come_in_other_kinds_of_sequences_and_floats():
    layer, x = _RunningSum(width=3, layers=1), tf.ones([2, 4, 3])
    output, memory = layer(x, {"sum": np.ones([2, 3]), "seen": np.array([1, 2])})
    np.testing.assert_array_equal(output[0, :, 0], [2, 3, 4, 5])
    assert memory["sum"].dtype == tf.float32
    with pytest.raises(
        ValueError, match=r"shapes \[\(None,\), \(None, 3\)\]; received \[\(2, 3\)\]"
    ):
        layer(x, {"sum": tf.ones([2, 3])})


def test_gradients_stop_at_the_memory():
    layer, x = _RunningSum(width=3, layers=1), tf.ones([2, 4, 3])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        output, memory = layer(x, layer.initial_memory(2))
        later = memory["sum"] * 2
    assert tape.gradient(output, x) is not None
    assert tape.gradient(later, x) is None


def test_padding_that_is_no_number_leaves_gradients_alone():
    layer = _RunningSum(width=3, layers=1)
    x = tf.constant([[[1.0] * 3, [np.nan] * 3]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(layer(x, mask=tf.constant([[True, False]])) ** 2)
    np.testing.assert_array_equal(tape.gradient(loss, x)[0, :, 0], [2, 0])


@pytest.mark.parametrize("settings", [{"width": 0, "layers": 1}, {"width": 1, "layers": 1.5}])
def test_sizes_are_checked(settings):
    with pytest.raises(ValueError, match=r"width.*0|layers.*1\.5"):
        SegmentLayer(**settings)


def test_a_subclass_has_to_say_what_it_does():
    layer = SegmentLayer(width=3, layers=1)
    with pytest.raises(NotImplementedError, match="SegmentLayer must define _memory_spec"):
        layer.initial_memory(2)
    with pytest.raises(ValueError, match="known number of features; received shape"):
        layer.build((None, None, None))


@pytest.mark.parametrize("kernel_size", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_windows_are_those_of_a_convolution(kernel_size, dilation):
    reach = (kernel_size - 1) * dilation
    x = np.random.default_rng(0).normal(size=(2, reach + 6, 3))
    kernel = np.random.default_rng(1).normal(size=(kernel_size, 3, 4))
    windows = causal_windows(tf.constant(x), kernel_size, dilation).numpy()
    assert windows.shape == (2, 6, 3 * kernel_size)
    expected = sum(
        x[:, reach - back : reach - back + 6] @ kernel[kernel_size - 1 - back // dilation]
        for back in range(0, reach + 1, dilation)
    )
    np.testing.assert_allclose(windows @ kernel.reshape(-1, 4), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalization", [None, "weight"])
def test_linear_maps_keep_the_scale(normalization):
    layer = linear(400, normalization, use_bias=True)
    x = np.random.default_rng(0).normal(size=(50, 300)).astype("float32")
    assert abs(np.std(layer(x)) - 1) < 0.05  # 20000 values
    assert (layer.bias.numpy() == 0).all()
