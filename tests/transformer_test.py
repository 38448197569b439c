"""Tests of tfdeq.cells.transformer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.cases import MODES, in_mode
from tfdeq.cells import TransformerCell

WIDTH, HEADS, LENGTH = 8, 2, 5


def _inputs(batch=2, length=LENGTH):
    return np.random.default_rng(0).normal(size=(batch, length, WIDTH)).astype("float32")


def _layer(**settings):
    # With the default recurrent_scale of 0 the first equilibrium would not depend on z.
    settings = {"recurrent_scale": 0.5, **settings}
    # The same weights each time: of some, a residual meets the tolerance only by rounding.
    keras.utils.set_random_seed(0)
    cell = TransformerCell(WIDTH, HEADS, LENGTH, **settings)
    return tfdeq.DEQLayer(cell, tfdeq.Anderson(max_steps=100, tolerance=1e-6))


def _weights(layer):
    return [variable.value for variable in layer.trainable_variables]


def _reference(cell, z, x):
    """The documented equation in numpy: a + MLP(norm(a)) with a = x + Attention(norm(z) W + x U)."""

    def norm(y):
        return y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)

    qkv = norm(z) @ cell.query_key_value.kernel.numpy()
    qkv = (qkv + x @ cell.injection.kernel.numpy()).reshape(*z.shape[:2], 3, HEADS, WIDTH // HEADS)
    query, key, value = (qkv[:, :, part].transpose(0, 2, 1, 3) for part in range(3))
    scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(WIDTH // HEADS)
    distance = np.subtract.outer(np.arange(z.shape[1]), np.arange(z.shape[1]))
    bias = cell.distance_bias.table.embeddings.numpy()[np.maximum(distance, 0)].transpose(2, 0, 1)
    scores = np.where(distance >= 0, scores + bias, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    attended = (shares / shares.sum(-1, keepdims=True)) @ value
    attended = attended.transpose(0, 2, 1, 3).reshape(z.shape)
    a = x + attended @ cell.attention_output.kernel.numpy()
    hidden = norm(a) @ cell.expand.kernel.numpy()
    return a + keras.ops.gelu(hidden, approximate=True).numpy() @ cell.contract.kernel.numpy()


def test_one_application_is_the_documented_equation():
    layer = _layer()
    x, z = _inputs(), _inputs()[::-1].copy()
    layer(x)
    cell = layer.cell
    np.testing.assert_allclose(
        cell(z, cell.inject(x)), _reference(cell, z, x), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("mode", MODES)
def test_equilibrium_converges(mode):
    layer = _layer()
    x = tf.constant(_inputs())
    layer(x)
    solution = in_mode(lambda x: layer(x, return_solution=True), mode)(x)
    assert solution.converged.numpy().all()
    np.testing.assert_allclose(
        layer.cell(solution.z, layer.cell.inject(x)), solution.z, rtol=1e-4, atol=1e-4
    )


def test_equilibrium_is_causal():
    """What comes later changes nothing before it, also through the solver's global steps."""
    layer = _layer()
    x = _inputs()
    other = x.copy()
    other[:, 3:] += 1.0
    before, after = layer(x).numpy(), layer(other).numpy()
    # Both solves stop at 1e-6 of the norm of the whole state, here about 10.
    np.testing.assert_allclose(after[:, :3], before[:, :3], atol=1e-4)
    assert np.abs(after[:, 3:] - before[:, 3:]).min(axis=-1).max() > 1e-2
    np.testing.assert_allclose(layer(x[:, :3]), before[:, :3], atol=1e-4)


def test_every_weight_gets_a_gradient():
    layer = _layer()
    x = tf.constant(_inputs())
    layer(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(layer(x) ** 2)
    names = [variable.path for variable in layer.trainable_variables]
    for name, gradient in zip(
        [*names, "x"], tape.gradient(loss, [*_weights(layer), x]), strict=True
    ):
        assert np.abs(gradient).max() > 1e-6, name


def test_dropout_is_constant_in_the_solve():
    layer = _layer(dropout=0.3)
    x = _inputs()
    layer(x)
    noisy = layer(x, training=True, return_solution=True)
    assert (noisy.residual.numpy() <= 1e-6).all()
    assert np.abs(noisy.z - layer(x)).max() > 1e-2


def test_config_round_trip():
    cell = TransformerCell(WIDTH, HEADS, LENGTH, feedforward=12, dropout=0.1, name="block")
    config = cell.get_config()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(cell))
    assert again.get_config() == config
    assert config["feedforward"] == 12
    assert TransformerCell(WIDTH, HEADS, LENGTH).feedforward == 4 * WIDTH


def test_starts_as_a_cell_with_nothing_to_solve():
    """W = 0: f does not depend on z, so one application is the equilibrium."""
    layer = _layer(recurrent_scale=0.0)
    x = _inputs()
    np.testing.assert_allclose(layer(x), layer(x, explicit_steps=1), rtol=1e-5, atol=1e-6)
    start = layer.cell.distance_bias.table.embeddings.numpy()
    np.testing.assert_allclose(start[3], [-3 * 2**-1, -3 * 2**-5])


def test_masked_positions_stay_at_zero_and_change_no_other():
    layer = _layer()
    x = _inputs()
    mask = np.array([[True] * 3 + [False] * 2] * 2)
    solution = layer(x, mask=mask, return_solution=True)
    short = layer(x[:, :3], return_solution=True)
    np.testing.assert_array_equal(solution.z[:, 3:], np.zeros([2, 2, WIDTH]))
    np.testing.assert_allclose(solution.z[:, :3], short.z, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(solution.steps, short.steps)


def test_text_too_long():
    with pytest.raises(
        ValueError, match=r"at most 5 long.*received shape \(2, 6, 8\).*into windows"
    ):
        _layer()(_inputs(length=LENGTH + 1))


@pytest.mark.parametrize("dtype", ["float64", "mixed_bfloat16"])
def test_dtype_given_to_the_cell_reaches_its_parts(dtype):
    cell = TransformerCell(WIDTH, HEADS, LENGTH, dtype=dtype)
    for layer in cell._flatten_layers(include_self=False):
        assert layer.dtype_policy.name == dtype, layer.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 5), "width must be an integer of at least 1; received 0"),
        ((8, 0, 5), "heads must be an integer of at least 1; received 0"),
        ((8, 3, 5), "heads must divide width; received width 8, heads 3"),
        ((8, 2, 0), "sequence_length must be an integer of at least 1; received 0"),
        ((8, 2, 5, 0), "feedforward must be an integer of at least 1; received 0"),
    ],
)
def test_sizes_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        TransformerCell(*arguments)
