"""Tests of tfdeq.models.adaptive_embedding."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support.cases import MODES, in_mode
from tfdeq.models import AdaptiveEmbedding

SETTINGS = {"vocabulary_size": 40, "width": 16, "cutoffs": [5, 15], "factor": 4}


def _layer(**settings):
    layer = AdaptiveEmbedding(**{**SETTINGS, **settings})
    layer.build()
    return layer


def _matrix(layer):
    """[V, d] float64: every token's embedding."""
    tables = [np.array(table, "float64") for table in layer.tables]
    tails = zip(tables[1:], layer.projections, strict=True)
    return np.concatenate([tables[0], *(e @ np.array(p, "float64") for e, p in tails)])


@pytest.mark.parametrize("cutoffs", [(), (1,), (5, 15)])
@pytest.mark.parametrize("mode", MODES)
def test_rows_of_the_whole_matrix(mode, cutoffs):
    layer = _layer(cutoffs=cutoffs)
    tokens = tf.constant([[0, 4, 5, 14], [15, 39, 1, 20]])
    result = in_mode(layer, mode)(tokens)
    assert result.dtype == tf.float32
    np.testing.assert_allclose(result, _matrix(layer)[tokens.numpy()], rtol=1e-5, atol=1e-6)
    assert len(layer.tables) == len(cutoffs) + 1
    assert len(layer.projections) == len(cutoffs)


@pytest.mark.parametrize("tokens", [[7], [39, 39], [0, 1], np.int64([20]), np.uint8([[3], [16]])])
def test_batches_of_one_cluster_and_of_other_integers(tokens):
    layer = _layer()
    np.testing.assert_allclose(layer(tf.constant(tokens)), _matrix(layer)[tokens], atol=1e-6)


def test_every_cluster_starts_with_unit_variance():
    layer = _layer(vocabulary_size=60_000, width=64, cutoffs=[20_000, 40_000])
    rows = np.array(layer(tf.range(60_000))).reshape(3, 20_000, 64)
    # The last cluster's projection [4, 64] has only 256 numbers.
    np.testing.assert_allclose(rows.var(axis=(1, 2)), 1.0, atol=0.25)
    np.testing.assert_allclose(rows[0].var(), 1.0, atol=0.01)


@pytest.mark.parametrize("mode", MODES)
def test_gradients(mode):
    """In float64: for a loss that is linear in each factor, central differences are exact up to rounding."""
    layer = _layer(dtype="float64")
    tokens = tf.constant([0, 4, 4, 5, 30, 30, 15])
    weights = tf.random.stateless_normal([7, 16], [1, 2], dtype=tf.float64)

    def loss():
        return tf.reduce_sum(weights * layer(tokens))

    variables = [variable.value for variable in layer.trainable_variables]

    def gradients():
        with tf.GradientTape() as tape:
            value = loss()
        return [tf.convert_to_tensor(g) for g in tape.gradient(value, variables)]

    random = np.random.default_rng(0)
    for variable, gradient in zip(variables, in_mode(gradients, mode)(), strict=True):
        direction = random.normal(size=variable.shape)
        before = variable.numpy()
        values = []
        for step in (1e-3, -1e-3):
            variable.assign(before + step * direction)
            values.append(float(loss()))
        variable.assign(before)
        expected = (values[0] - values[1]) / 2e-3
        np.testing.assert_allclose(np.sum(gradient * direction), expected, rtol=1e-9, atol=1e-9)


def test_policy():
    layer = _layer(dtype="mixed_bfloat16")
    tokens = tf.constant([0, 20, 39])
    result = layer(tokens)
    assert result.dtype == tf.bfloat16
    assert {variable.dtype for variable in layer.variables} == {"float32"}
    np.testing.assert_allclose(
        tf.cast(result, tf.float32), _matrix(layer)[tokens], rtol=0.02, atol=0.02
    )


@pytest.mark.slow
def test_trains_saves_and_loads(tmp_path):
    model = keras.Sequential([keras.Input([3], dtype="int32"), AdaptiveEmbedding(**SETTINGS)])
    assert model.output_shape == (None, 3, 16)
    model.compile(keras.optimizers.Adam(0.1), "mse", jit_compile=True)
    tokens = np.arange(36).reshape(12, 3)
    losses = model.fit(tokens, np.ones([12, 3, 16]), epochs=60, verbose=0).history["loss"]
    assert losses[-1] < 0.1 * losses[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(tokens), model(tokens), rtol=1e-6)
    assert loaded.layers[-1].get_config() == model.layers[-1].get_config()


def test_config_of_foreign_integers():
    layer = AdaptiveEmbedding(np.int64(40), np.int32(16), np.array([5, 15]), factor=np.int8(4))
    config = layer.get_config()
    assert {name: config[name] for name in SETTINGS} == SETTINGS
    assert type(config["cutoffs"][0]) is int
    assert AdaptiveEmbedding.from_config(config).bounds == (0, 5, 15, 40)


@pytest.mark.parametrize("token", [-1, 40])
def test_what_is_no_token_is_refused(token):
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{token} is not in"):
        _layer()(tf.constant([3, token]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocabulary_size": 0}, "vocabulary_size must be an integer of at least 1; received 0"),
        ({"width": 0}, "width must be an integer of at least 1; received 0"),
        ({"factor": 0}, "factor must be an integer of at least 1; received 0"),
        ({"cutoffs": 5}, r"cutoffs must be a sequence of integers; received 5.*write \[cutoff\]"),
        ({"cutoffs": [0, 5]}, "each of cutoffs must be an integer of at least 1; received 0"),
        ({"cutoffs": [5.0]}, "each of cutoffs must be an integer of at least 1; received 5.0"),
        ({"cutoffs": [15, 5]}, r"must increase; received \(15, 5\). Sort them"),
        ({"cutoffs": [5, 5]}, r"must increase; received \(5, 5\). Sort them"),
        ({"cutoffs": [5, 40]}, r"below vocabulary_size, 40; received \(5, 40\). Leave out"),
        (
            {"width": 24},
            r"divisible by factor\^\(number of cutoffs\), 4\^2 = 16; received width 24. Take a mult",
        ),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveEmbedding(**{**SETTINGS, **settings})
