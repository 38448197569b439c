"""ResidualBlock: one application by hand, in both forms."""

import keras
import numpy as np
import pytest

from tfdeq.cells.multiscale.residual_block import ResidualBlock


def _floats(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def _normed(x, groups, gain=1.0):
    """A group norm without shifts, in float64."""
    parts = np.asarray(x, "float64").reshape(*x.shape[:-1], groups, -1)
    mean = parts.mean(axis=(1, 2, 4), keepdims=True)
    variance = parts.var(axis=(1, 2, 4), keepdims=True)
    return gain * ((parts - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)


def _convolved(x, layer):
    return np.asarray(keras.ops.conv(x.astype("float32"), layer.kernel, padding="same"))


@pytest.mark.parametrize("skip", ["state", "input"])
def test_one_application(skip):
    block = ResidualBlock(
        4, 3, groups=2, weight_normalization=False, skip=skip, recurrent_scale=0.5
    )
    z, x = _floats(2, 5, 6, 4), _floats(2, 5, 6, 4, seed=1)
    found = block(z, x)
    inner = np.maximum(_normed(_convolved(z, block.expand), 2), 0)
    change = _convolved(inner, block.contract)
    kept, changed = (z, change + x) if skip == "state" else (x, change)
    expected = _normed(np.maximum(kept + _normed(changed, 2, 0.5), 0), 2)
    # float32 sums of up to 108 terms, and two norms
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_nothing_is_injected_where_there_is_nothing():
    block = ResidualBlock(4, 2, groups=2)
    z = _floats(1, 4, 4, 4)
    np.testing.assert_array_equal(block(z), block(z, np.zeros_like(z)))


def test_with_zero_gains_the_state_has_no_say():
    block = ResidualBlock(4, 2, groups=2, skip="input", recurrent_scale=0.0)
    x = _floats(1, 4, 4, 4)
    np.testing.assert_array_equal(block(x, x), block(7 * x + 1, x))


def test_dropout_is_for_training():
    block = ResidualBlock(4, 2, groups=2, dropout=0.5)
    z = _floats(1, 4, 4, 4)
    np.testing.assert_array_equal(block(z, z), block(z, z))
    assert not np.array_equal(block(z, z, training=True), block(z, z))


def test_it_survives_its_config():
    block = ResidualBlock(8, 2, 4, 0.1, False, "input", 0.3, name="mine")
    assert ResidualBlock.from_config(block.get_config()).get_config() == block.get_config()
