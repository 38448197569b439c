"""Tests of tfdeq.models.explicit_language_model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support.cases import fast, fast_pairs, in_mode
from tests.support.memory_cases import training_step
from tfdeq import baselines
from tfdeq.models import ExplicitLanguageModel

# With a memory, texts may be longer than sequence_length.
VOCABULARY, LENGTH, WIDTH = 11, 5, 8
SEGMENTS = (4, 1, 7, 2)
TEXT = sum(SEGMENTS)
# Add one line for a new baseline.
NETWORKS = {
    "lstm": lambda **kwargs: baselines.Recurrent(WIDTH, 2, **kwargs),
    "gru": lambda **kwargs: baselines.Recurrent(WIDTH, 1, "gru", **kwargs),
    "temporal convolution": lambda **kwargs: baselines.TemporalConvolution(WIDTH, 3, **kwargs),
    "transformer": lambda **kwargs: baselines.TransformerStack(
        WIDTH, 2, LENGTH, 2, **{"span": 4, **kwargs}
    ),
    "trellis": lambda **kwargs: baselines.TrellisNetwork(WIDTH, 4, 3, **kwargs),
}
every_network = pytest.mark.parametrize("name", NETWORKS)
# For what the networks' own tests show too.
some_networks = pytest.mark.parametrize("name", fast(["lstm", "transformer"], NETWORKS))
every_network_and_cutoffs = pytest.mark.parametrize(
    ("name", "cutoffs"), fast_pairs(NETWORKS, [(), (4,)], ["lstm", ()])
)


def _model(name, network=None, **settings):
    keras.utils.set_random_seed(0)
    # A stack's layers add to its input; the other networks map it, and may have another width.
    width = WIDTH if name == "transformer" else 6
    made = NETWORKS[name](**(network or {}), dtype=settings.get("dtype"), name="network")
    model = ExplicitLanguageModel(VOCABULARY, LENGTH, width, made, **settings)
    model.build((None, LENGTH))
    return model


def _tokens(batch=3, length=TEXT, seed=0):
    tokens = np.random.default_rng(seed).integers(0, VOCABULARY, size=(batch, length))
    return tf.constant(tokens, tf.int32)


def _in_segments(model, tokens, lengths=SEGMENTS, **settings):
    memory, parts = model.initial_memory(tokens.shape[0]), []
    for piece in tf.split(tokens, lengths, axis=1):
        answer, memory = model(piece, memory=memory, **settings)
        parts.append(answer)
    return tf.concat(parts, axis=1), memory


def _assert_close(one, other, **tolerance):
    tf.nest.map_structure(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


@every_network_and_cutoffs
def test_segments_are_one_long_text(name, cutoffs):
    model, tokens = _model(name, cutoffs=cutoffs, cutoff_factor=2), _tokens()
    assert model.remembers
    whole = model(tokens)
    assert whole.shape == (3, 14, VOCABULARY)
    assert whole.dtype == tf.float32
    logits, memory = _in_segments(model, tokens)
    # float32, summed in other orders.
    np.testing.assert_allclose(logits, whole, rtol=1e-5, atol=1e-5)
    _, at_once = _in_segments(model, tokens, [14])
    _assert_close(memory, at_once, rtol=1e-5, atol=1e-5)
    # The earlier text matters.
    assert np.abs(model(tokens[:, -2:]) - logits[:, -2:]).max() > 1e-3


@every_network_and_cutoffs
def test_losses_are_those_of_the_logits(name, cutoffs):
    model = _model(name, cutoffs=cutoffs, cutoff_factor=2, tied_output=True)
    tokens, targets = _tokens(length=LENGTH), _tokens(length=LENGTH, seed=1)
    _, memory = model(_tokens(seed=2), memory=model.initial_memory(3))
    for settings in ({}, {"memory": memory}):
        logits = model(tokens, **settings)
        losses = model(tokens, targets=targets, **settings)
        if settings:
            (logits, after), (losses, also) = logits, losses
            _assert_close(also, after, rtol=1e-6, atol=1e-6)
        log_p = tf.nn.log_softmax(logits)
        expected = -tf.gather(log_p, targets, axis=-1, batch_dims=2)
        assert losses.dtype == tf.float32
        np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", fast(["lstm"], ["lstm", "transformer"])
)  # the networks' own tests include all kinds
def test_xla_does_as_eager_mode_does(name):
    model, tokens = _model(name), _tokens(length=LENGTH)
    _, memory = model(_tokens(seed=2), memory=model.initial_memory(3))
    step = training_step(model)
    expected, actual = (in_mode(step, mode)(tokens, memory) for mode in ("eager", "xla"))
    _assert_close(actual, expected, rtol=1e-4, atol=1e-6)
    assert all(np.abs(gradient).max() > 0 for gradient in actual[2])


@some_networks
def test_memory_carries_no_gradient(name):
    model, tokens = _model(name), _tokens(length=3)
    _, before = model(_tokens(seed=2), memory=model.initial_memory(3))
    floats = [leaf for leaf in tf.nest.flatten(before) if leaf.dtype.is_floating]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(floats)
        logits, after = model(tokens, memory=before, training=True)
        left = [leaf for leaf in tf.nest.flatten(after) if leaf.dtype.is_floating]
    weights = [variable.value for variable in model.trainable_variables]
    assert tape.gradient(logits, floats) == [None] * len(floats)
    assert tape.gradient(left, [*weights, *floats]) == [None] * (len(weights) + len(floats))


@some_networks
def test_padding_behind_a_text_changes_no_answer(name):
    model, tokens = _model(name), _tokens()
    mask = tf.sequence_mask([14, 9, 1], 14)
    exact = model(tokens)
    padded = [model(tokens, mask=mask), model(tokens, mask=mask, memory=model.initial_memory(3))[0]]
    for found in padded:
        for row, length in enumerate((14, 9, 1)):
            np.testing.assert_allclose(
                found[row, :length], exact[row, :length], rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("settings", fast([{}], [{}, {"cutoffs": (4,), "tied_output": True}]))
@some_networks
def test_saving(name, settings, tmp_path):
    settings = {**settings, "cutoff_factor": 2, "input_dropout": 0.1, "output_dropout": 0.2}
    model, tokens = _model(name, {"dropout": 0.3}, **settings), _tokens()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    assert type(loaded.network) is type(model.network)
    _assert_close(_in_segments(loaded, tokens), _in_segments(model, tokens), rtol=1e-6, atol=1e-6)


@every_network
def test_symbolic_call_knows_its_outputs(name):
    model = _model(name)
    memory = keras.tree.map_structure(
        lambda leaf: keras.Input(leaf.shape[1:], dtype=leaf.dtype.name), model.initial_memory(1)
    )
    tokens = keras.Input((LENGTH,), dtype="int32")
    assert model(tokens).shape == (None, LENGTH, VOCABULARY)
    losses, after = model(tokens, targets=tokens, memory=memory)
    assert losses.shape == (None, LENGTH)
    keras.tree.assert_same_structure(after, memory)


def test_dropouts_are_in_training_alone():
    for settings in ({"input_dropout": 0.5}, {"output_dropout": 0.5}):
        model, tokens = _model("lstm", **settings), _tokens()
        np.testing.assert_array_equal(model(tokens, training=False), model(tokens))
        assert np.abs(model(tokens, training=True) - model(tokens)).max() > 1e-2
    model = _model("lstm", {"dropout": 0.5})
    assert np.abs(model(tokens, training=True) - model(tokens)).max() > 1e-2


def test_trains_by_fit():
    model, tokens = _model("trellis"), _tokens(16, LENGTH + 1)
    model.compile(
        keras.optimizers.Adam(0.03),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    logs = model.fit(tokens[:, :-1], tokens[:, 1:], epochs=8, batch_size=8, verbose=0).history
    assert logs["loss"][-1] < 0.8 * logs["loss"][0]


def test_a_network_without_a_span_does_not_remember():
    model = _model("transformer", {"span": None})
    assert not model.remembers
    with pytest.raises(ValueError, match=r"has no carried memory, .*Give it a span"):
        model.initial_memory(2)
    with pytest.raises(ValueError, match=r"at most 5 long.*received shape \(3, 14\)\. Cut the"):
        model(_tokens())


def test_the_network_has_its_own_say_about_the_embeddings_width():
    with pytest.raises(ValueError, match=r"must have 8 features, the width; received .*Project"):
        ExplicitLanguageModel(VOCABULARY, LENGTH, 6, NETWORKS["transformer"]()).build((None, 5))
