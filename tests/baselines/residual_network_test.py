"""ResidualNetwork: its shapes, its size, and a block by hand."""

import keras
import numpy as np
import pytest

from tfdeq.baselines import ResidualNetwork
from tfdeq.baselines.residual_network import residual_network_size


@pytest.mark.parametrize(("depth", "shape"), [(1, (8, 6, 3)), (2, (4, 3, 6)), (5, (2, 2, 12))])
def test_shapes_and_parameters(depth, shape):
    network = ResidualNetwork(3, depth)
    assert network(np.ones((2, 8, 6, 3), "float32")).shape == (2, *shape)
    assert residual_network_size(3, depth) == (network.count_params(), shape[-1])


def test_a_block_by_hand():
    network = ResidualNetwork(3, 1)
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype("float32")
    found = network(x)
    (block,) = network.blocks
    # Untrained statistics: means of 0, variances of 1.
    scale = 1 / np.sqrt(1 + 1e-5)
    inner = keras.ops.relu(scale * keras.ops.conv(x, block.first.kernel, padding="same"))
    outer = scale * keras.ops.conv(inner, block.second.kernel, padding="same")
    np.testing.assert_allclose(found, keras.ops.relu(x + outer), atol=1e-5)
    assert not np.allclose(network(x, training=True), found, atol=1e-2)


def test_it_is_saved_and_loaded(tmp_path):
    inputs = keras.Input((8, 8, 2))
    model = keras.Model(inputs, ResidualNetwork(2, 3)(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 2)).astype("float32")
    np.testing.assert_allclose(loaded(x), model(x), atol=1e-6)


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="depth"):
        ResidualNetwork(4, 0)
