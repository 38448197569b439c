"""Properties of all baselines in tfdeq.baselines."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support.cases import fast, in_mode
from tfdeq import baselines

WIDTH, LENGTH = 8, 11
# Add one line for a new baseline; the cases include every kind of memory.
CASES = {
    "lstm": lambda **kwargs: baselines.Recurrent(WIDTH, 2, **kwargs),
    "gru": lambda **kwargs: baselines.Recurrent(WIDTH, 2, "gru", **kwargs),
    "temporal convolution": lambda **kwargs: baselines.TemporalConvolution(WIDTH, 3, **kwargs),
    "transformer": lambda **kwargs: baselines.TransformerStack(
        WIDTH, 2, 4, 3, **{"span": 5, **kwargs}
    ),
    "trellis": lambda **kwargs: baselines.TrellisNetwork(WIDTH, 4, 3, **kwargs),
}
every_case = pytest.mark.parametrize("name", CASES)
# For what the layers share.
some_cases = pytest.mark.parametrize("name", fast(["lstm", "transformer"], CASES))


def _layer(name, **settings):
    layer = CASES[name](**settings)
    layer.build((None, None, WIDTH))
    return layer


def _inputs(batch=2, length=LENGTH, dtype="float32"):
    x = np.random.default_rng(0).normal(size=(batch, length, WIDTH))
    return tf.cast(x, dtype)


def _in_segments(layer, x, *lengths):
    memory, outputs = layer.initial_memory(x.shape[0]), []
    for segment in tf.split(x, lengths, axis=1):
        output, memory = layer(segment, memory)
        outputs.append(output)
    return tf.concat(outputs, axis=1)


@every_case
def test_the_past_matters_and_the_future_does_not(name):
    layer, x = _layer(name), _inputs()
    before = layer(x).numpy()
    after = layer(tf.concat([x[:, :5], x[:, 5:] + 1], axis=1)).numpy()
    np.testing.assert_array_equal(after[:, :5], before[:, :5])
    moved = np.abs(after[:, 5:] - before[:, 5:]).max(axis=(0, 2))
    assert (moved > 1e-3).all()
    after = layer(tf.concat([x[:, :4], x[:, 4:5] + 1, x[:, 5:]], axis=1)).numpy()
    assert np.abs(after[:, 5] - before[:, 5]).max() > 1e-4


@pytest.mark.parametrize(
    ("dtype", "tolerance"), fast([("float64", 1e-12)], [("float64", 1e-12), ("float32", 1e-5)])
)
@every_case
def test_segments_are_one_piece(name, dtype, tolerance):
    layer, x = _layer(name, dtype=dtype), _inputs(dtype=dtype)
    whole = layer(x)
    for lengths in ([3, 4, 4], [1] * LENGTH, [8, 1, 2]):
        segments = _in_segments(layer, x, *lengths)
        np.testing.assert_allclose(segments, whole, rtol=tolerance, atol=tolerance)


@some_cases
def test_zeros_are_a_text_that_nothing_stands_before(name):
    layer, x = _layer(name), _inputs()
    whole = layer(x)
    output, memory = layer(x, layer.initial_memory(2))
    np.testing.assert_allclose(output, whole, rtol=1e-6, atol=1e-6)
    assert all((leaf.numpy() == 0).all() for leaf in tf.nest.flatten(layer.initial_memory(2)))
    # The text of one sample ends here, that of the other continues.
    goes_on = tf.constant([False, True])
    memory = tf.nest.map_structure(
        lambda leaf: tf.where(
            tf.reshape(goes_on, [2] + [1] * (len(leaf.shape) - 1)), leaf, tf.zeros_like(leaf)
        ),
        memory,
    )
    output, _ = layer(x, memory)
    np.testing.assert_allclose(output[0], whole[0], rtol=1e-6, atol=1e-6)
    assert np.abs(output[1] - whole[1]).max() > 1e-3


@some_cases
def test_no_gradient_through_the_memory(name):
    layer, x = _layer(name), _inputs()
    with tf.GradientTape() as tape:
        tape.watch(x)
        output, memory = layer(x, layer.initial_memory(2))
        later, _ = layer(tf.ones([2, 3, WIDTH]), memory)
    assert tape.gradient(later, x) is None
    assert output.shape == x.shape


@every_case
def test_padding_is_zero_and_changes_nothing(name):
    layer, x = _layer(name), _inputs()
    mask = tf.sequence_mask([LENGTH, 4], LENGTH)
    padded = tf.where(mask[:, :, None], x, np.nan)
    expected = np.where(mask[:, :, None], layer(x), 0)
    np.testing.assert_allclose(layer(padded, mask=mask), expected, rtol=1e-6, atol=1e-6)
    output, _ = layer(padded, layer.initial_memory(2), mask=mask)
    np.testing.assert_allclose(output, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_graph_and_xla_do_as_eager_mode_does(name):
    """Outputs, memory and gradients; the dropout rate is 0, so that training has no randomness."""
    layer, x = _layer(name, dtype="float64"), _inputs(dtype="float64")
    _, memory = layer(x, layer.initial_memory(2))

    def step(x, memory):
        with tf.GradientTape() as tape:
            output, memory = layer(x, memory, training=True)
            loss = tf.reduce_sum(output**2)
        return output, memory, tape.gradient(loss, layer.trainable_variables)

    expected = step(x, memory)
    gradients = tf.nest.flatten(expected[2])
    assert all(np.isfinite(g).all() for g in map(tf.convert_to_tensor, gradients))
    assert all(np.abs(tf.convert_to_tensor(g)).max() > 0 for g in gradients)
    for mode in ("graph", "xla"):
        actual = in_mode(step, mode)(x, memory)
        tf.nest.map_structure(
            lambda a, b: np.testing.assert_allclose(
                tf.convert_to_tensor(a), tf.convert_to_tensor(b), rtol=1e-9, atol=1e-10
            ),
            actual,
            expected,
        )


@some_cases
def test_batch_and_length_may_be_unknown(name):
    layer, x = _layer(name), _inputs()
    whole, memory = layer(x, layer.initial_memory(2))
    traced = tf.function(
        lambda x: (layer(x), layer(x, layer.initial_memory(tf.shape(x)[0]))),
        input_signature=[tf.TensorSpec([None, None, WIDTH])],
    )
    for output in (traced(x)[0], traced(x)[1][0]):
        np.testing.assert_allclose(output, whole, rtol=1e-5, atol=1e-5)
    for actual, expected in zip(
        tf.nest.flatten(traced(x)[1][1]), tf.nest.flatten(memory), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", fast(["eager"], ["eager", "xla"]))
@some_cases
def test_mixed_bfloat16(name, mode):
    layer, x = _layer(name, dtype="mixed_bfloat16"), _inputs()
    exact = _layer(name)
    output, memory = in_mode(lambda x: layer(x, layer.initial_memory(2)), mode)(x)
    exact.set_weights(layer.get_weights())
    assert output.dtype == tf.bfloat16
    assert {leaf.dtype for leaf in tf.nest.flatten(memory)} <= {tf.bfloat16, tf.int32}
    assert {variable.dtype for variable in layer.trainable_variables} == {"float32"}
    error = tf.cast(output, "float32") - exact(x)
    # bfloat16 keeps 8 bits; the sums over positions and layers lose a few more.
    assert np.abs(error).max() < 0.05 * np.abs(exact(x)).max()


@some_cases
def test_dropout_is_in_training_alone(name):
    layer = _layer(name, dropout=0.5)
    x = _inputs()
    assert np.abs(layer(x, training=True) - layer(x, training=True)).max() > 1e-3
    np.testing.assert_array_equal(layer(x, training=False), layer(x))
    with pytest.raises(ValueError, match="rate"):
        CASES[name](dropout=1.5)


@some_cases
def test_saving(name, tmp_path):
    inputs = keras.Input((None, WIDTH))
    layer = CASES[name](dropout=0.2, name="baseline")
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("baseline").get_config() == layer.get_config()
    np.testing.assert_allclose(loaded(_inputs()), model(_inputs()), rtol=1e-6, atol=1e-6)


@every_case
def test_the_mask_of_an_embedding_arrives(name):
    tokens = np.array([[1, 2, 3, 0, 0], [3, 2, 1, 2, 1]])
    embedding = keras.layers.Embedding(4, WIDTH, mask_zero=True)
    layer = _layer(name)
    output = layer(embedding(tokens)).numpy()
    assert (output[0, 3:] == 0).all()
    assert (np.abs(output).max(axis=-1) > 0).sum() == 8


@every_case
def test_errors_say_what_was_received(name):
    with pytest.raises(ValueError, match=r"positions, features\].*received shape \(2, 8\)"):
        CASES[name]()(tf.zeros([2, WIDTH]))
    layer = _layer(name)
    with pytest.raises(ValueError, match=r"memory must be .* received \[\(2, 1\)\]"):
        layer(_inputs(), [tf.zeros([2, 1])])
