"""MultiscaleCell: shapes, starts, settings and what it shares with its source."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tfdeq.cells import MultiscaleCell


def _images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def _smooth(skip="input"):
    return MultiscaleCell([4, 8], 2, groups=2, skip=skip, recurrent_scale=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(6, 7), (4, 4)])
def test_branches_are_half_as_large_each(size):
    layer = tfdeq.DEQLayer(MultiscaleCell([4, 4, 8], 2, groups=2), "fixed_point_iteration")
    shapes = [branch.shape for branch in layer(_images(2, *size, 4), max_steps=2)]
    halved = [size]
    for _ in range(2):
        halved.append(tuple((part + 1) // 2 for part in halved[-1]))
    assert shapes == [(2, *part, count) for part, count in zip(halved, (4, 4, 8), strict=True)]


@pytest.mark.slow
def test_sizes_need_not_be_known():
    layer = tfdeq.DEQLayer(_smooth(), "fixed_point_iteration")
    inputs = keras.Input((None, None, 4))
    model = keras.Model(inputs, layer(inputs))
    compiled = tf.function(model, input_signature=[tf.TensorSpec((None, None, None, 4))])
    for size in ((5, 6), (4, 3)):
        x = tf.constant(_images(2, *size, 4))
        for one, other in zip(compiled(x), model(x), strict=True):
            assert one.shape == other.shape
            # One graph for all sizes against one of this size: both within the tolerance of 1e-3.
            np.testing.assert_allclose(one, other, atol=1e-3)


@pytest.mark.slow
def test_adding_the_input_it_converges_and_has_a_gradient():
    layer = tfdeq.DEQLayer(
        _smooth(), tfdeq.Anderson(30, 1e-5), tfdeq.Implicit(tfdeq.GMRES(30, 1e-5))
    )
    x = tf.constant(_images(2, 4, 4, 4))
    with tf.GradientTape() as tape:
        tape.watch(x)
        solution = layer(x, return_solution=True)
        loss = tf.add_n([tf.reduce_sum(branch[..., 0] ** 3) for branch in solution.z])
    assert solution.converged.numpy().all()
    found = tape.gradient(loss, x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        states = layer(x, explicit_steps=14, training=True)
        loss = tf.add_n([tf.reduce_sum(branch[..., 0] ** 3) for branch in states])
    expected = tape.gradient(loss, x)
    # Solved to 1e-5; the cell contracts well enough for 14 applications to be as close.
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.slow
def test_with_a_scale_of_zero_the_first_equilibrium_is_one_application():
    cell = MultiscaleCell([4, 8], 2, groups=2, skip="input", recurrent_scale=0.0)
    layer = tfdeq.DEQLayer(cell, tfdeq.FixedPointIteration(10, 1e-6))
    assert layer(_images(3, 5, 5, 4), return_solution=True).steps.numpy().tolist() == [2, 2, 2]


def test_one_branch_is_a_residual_block():
    cell = MultiscaleCell([4], 2, groups=2)
    z, x = _images(1, 5, 5, 4), _images(1, 5, 5, 4, seed=1)
    (found,) = cell([z], cell.inject(x))
    np.testing.assert_array_equal(found, cell.blocks[0](z, x))
    assert cell.fusion is None


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="groups must divide the channels of every branch"):
        MultiscaleCell([24, 20])
    with pytest.raises(ValueError, match="received none"):
        MultiscaleCell([])
    with pytest.raises(ValueError, match="dropout must be in .* received 1.0"):
        MultiscaleCell([8], dropout=1)
    with pytest.raises(ValueError, match="skip must be 'state' or 'input'; received 'none'"):
        MultiscaleCell([8], skip="none")
    with pytest.raises(ValueError, match="recurrent_scale must be >= 0"):
        MultiscaleCell([8], recurrent_scale=-1)
    with pytest.raises(ValueError, match=r"Put a keras.layers.Conv2D\(8, 3"):
        tfdeq.DEQLayer(MultiscaleCell([8]))(_images(1, 4, 4, 3))


def test_it_survives_its_config():
    cell = MultiscaleCell([8, 16], 3, 4, 0.2, False, "input", 0.5, name="mine")
    assert MultiscaleCell.from_config(cell.get_config()).get_config() == cell.get_config()
