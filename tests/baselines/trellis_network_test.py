"""Tests of tfdeq.baselines.trellis_network."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import fast
from tfdeq.baselines import TrellisNetwork
from tfdeq.cells import TrellisCell

FEATURES, WIDTH, LENGTH = 4, 6, 7


def _inputs(dtype="float64"):
    return np.random.default_rng(0).normal(size=(2, LENGTH, FEATURES)).astype(dtype)


def _network(layers, kernel_size=2, dtype="float64", **settings):
    network = TrellisNetwork(WIDTH, layers, kernel_size, dtype=dtype, **settings)
    network.build((None, None, FEATURES))
    return network


def _sigmoid(a):
    return 1 / (1 + np.exp(-a))


def _reference(network, x):
    """The documented equation in numpy, tap by tap."""
    k = network.kernel_size
    w = np.reshape(network.recurrent.kernel, [k, WIDTH, 4 * WIDTH])
    u = np.reshape(network.injection.kernel, [k, FEATURES, 4 * WIDTH])
    h, c = np.zeros([2, LENGTH, WIDTH]), np.zeros([2, LENGTH, WIDTH])
    for _ in range(network.depth):
        new_h, new_c = np.zeros_like(h), np.zeros_like(c)
        for t in range(LENGTH):
            gates = np.tile(network.injection.bias.numpy(), [2, 1])
            for tap in range(k):
                place = t - (k - 1) + tap
                if place >= 0:
                    gates = gates + h[:, place] @ w[tap] + x[:, place] @ u[tap]
            i, o, g, f = np.split(gates, 4, axis=-1)
            before = c[:, t - 1] if t else 0.0
            new_c[:, t] = _sigmoid(f) * before + _sigmoid(i) * np.tanh(g)
            new_h[:, t] = _sigmoid(o) * np.tanh(new_c[:, t])
        h, c = new_h, new_c
    return h


@pytest.mark.parametrize("normalization", [None, "weight", "spectral"])
@pytest.mark.parametrize("kernel_size", [1, 2, 3])
def test_is_the_documented_equation(kernel_size, normalization):
    network = _network(3, kernel_size, normalization=normalization)
    network.injection.bias.assign(np.linspace(-1, 1, 4 * WIDTH))
    actual = network(_inputs())
    np.testing.assert_allclose(actual, _reference(network, _inputs()), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kernel_size", fast([3], [2, 3]))
@pytest.mark.slow
def test_many_layers_are_the_equilibrium_of_the_cell(kernel_size):
    network = _network(100, kernel_size)
    network.recurrent.gain.assign(0.5 * network.recurrent.gain)  # almost a contraction
    cell = TrellisCell(
        WIDTH, kernel_size, recurrent_scale=1.0, normalization="weight", dtype="float64"
    )
    solver = tfdeq.Anderson(max_steps=100, tolerance=1e-12)
    layer = tfdeq.DEQLayer(cell, solver, dtype="float64")
    x = tf.constant(_inputs())
    layer(x)
    cell.set_weights(network.get_weights())
    equilibrium = layer(x).numpy()
    np.testing.assert_allclose(network(x), equilibrium, atol=1e-10)
    # There, the states of all layers agree, and so does the memory of a segment.
    _, memory = network(x, network.initial_memory(2))
    past = cell.remember(equilibrium, cell.inject(x))
    for name in ("h", "c"):
        np.testing.assert_allclose(memory[name][-1], past[name], atol=1e-10)
    np.testing.assert_array_equal(memory["input"], past["input"])


@pytest.mark.parametrize("layers", [1, 5])
def test_parameters_do_not_grow_with_the_layers(layers):
    network = _network(layers, 3, normalization=None)
    assert network.count_params() == 4 * WIDTH * (3 * WIDTH + 3 * FEATURES + 1)
    # Lengths are learned separately from directions, for W and U.
    assert _network(layers, 3).count_params() == network.count_params() + 2 * 4 * WIDTH


def test_memory_is_of_every_layer_but_the_last():
    with pytest.raises(ValueError, match="Build the layer first"):
        TrellisNetwork(WIDTH, 2).initial_memory(2)
    memory = _network(3, 3).initial_memory(2)
    assert [tuple(h.shape) for h in memory["h"]] == [(2, 2, WIDTH)] * 2
    assert [tuple(c.shape) for c in memory["c"]] == [(2, WIDTH)] * 2
    assert memory["input"].shape == (2, 2, FEATURES)
    assert _network(1).initial_memory(2)["h"] == []


@pytest.mark.parametrize("kernel_size", [1, 2])
def test_one_layer_remembers_its_input_alone(kernel_size):
    network, x = _network(1, kernel_size), tf.constant(_inputs())
    first, memory = network(x[:, :3], network.initial_memory(2))
    second, _ = network(x[:, 3:], memory)
    np.testing.assert_allclose(tf.concat([first, second], 1), network(x), rtol=1e-12)


def test_one_mask_for_all_positions_and_layers():
    """If the drawn mask is applied to W, the network without dropout gives the same result."""
    network = _network(4, normalization=None, dropout=0.5)
    drawn = []
    inner = network.hidden_dropout.call
    network.hidden_dropout.call = lambda *args, **kwargs: (
        drawn.append(inner(*args, **kwargs)) or drawn[-1]
    )
    x = _inputs()
    output = network(x, training=True)
    assert len(drawn) == 1
    assert drawn[0].shape == (2, 1, WIDTH)
    kernel = np.reshape(network.recurrent.kernel, [2, WIDTH, 4 * WIDTH])
    for sample in range(2):
        masked = kernel * drawn[0].numpy()[sample, 0][None, :, None]
        network.recurrent.kernel.assign(masked.reshape(-1, 4 * WIDTH))
        np.testing.assert_allclose(network(x)[sample], output[sample], rtol=1e-10, atol=1e-12)


def test_weight_dropout_is_of_the_recurrent_kernel():
    network = _network(4, weight_dropout=0.5)
    x = _inputs()
    assert np.abs(network(x, training=True) - network(x)).max() > 1e-3
    network.recurrent.gain.assign(tf.zeros_like(network.recurrent.gain))
    np.testing.assert_allclose(network(x, training=True), network(x), rtol=1e-12)


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="kernel_size"):
        TrellisNetwork(WIDTH, 2, kernel_size=0)
    with pytest.raises(ValueError, match="received 'batch'"):
        TrellisNetwork(WIDTH, 2, normalization="batch")
