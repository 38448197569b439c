"""Tests of tfdeq.models.token_model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support.cases import MODES, fast, in_mode
from tfdeq.models import AdaptiveEmbedding, AdaptiveSoftmax
from tfdeq.models.token_model import TokenModel

VOCABULARY, LENGTH, WIDTH, CUTOFFS = 40, 6, 16, (5, 15)
OUTPUTS = ((False, WIDTH), (True, WIDTH), (True, 2 * WIDTH))  # whether tied, and the state's width
CHUNKS = ((7, "eager"), (5, "eager"), (100, "eager"), (5, "xla"))


@keras.saving.register_keras_serializable(package="tfdeq_tests")
class Bigram(TokenModel):
    """The smallest model: each position sees its own token; wider states are copies."""

    def build_states(self, shape):
        pass

    def call(self, tokens, targets=None, training=None):
        x = self.embed(tokens, training)
        z = keras.ops.concatenate([x] * (self.state_width // self.width), axis=-1)
        return self._answer(z, targets, training)

    def get_config(self):
        return {**super().get_config(), "state_width": self.state_width}


def _model(**settings):
    keras.utils.set_random_seed(0)
    model = Bigram(VOCABULARY, LENGTH, **{"width": WIDTH, **settings})
    model.build((None, LENGTH))
    return model


def _tokens(batch=7, length=LENGTH, seed=0):
    """Returns tokens of all clusters."""
    tokens = np.random.default_rng(seed).permutation(batch * length) % VOCABULARY
    return tf.constant(tokens.reshape(batch, length), tf.int32)


def _log_softmax(logits):
    logits = np.array(logits, "float64")
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def _picked(log_p, targets):
    return np.take_along_axis(log_p, np.array(targets)[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("state_width", [WIDTH, 2 * WIDTH])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("cutoffs", [(), CUTOFFS, (39,)])
def test_losses_are_those_of_the_logits(cutoffs, tied, state_width):
    model = _model(cutoffs=cutoffs, tied_output=tied, state_width=state_width)
    tokens, targets = _tokens(), _tokens(seed=1)
    logits, losses = model(tokens), model(tokens, targets=targets)
    assert logits.shape == (7, LENGTH, VOCABULARY)
    assert losses.shape == (7, LENGTH)
    assert logits.dtype == losses.dtype == tf.float32
    log_p = _log_softmax(logits)
    np.testing.assert_allclose(losses, -_picked(log_p, targets), rtol=1e-5, atol=1e-5)
    if cutoffs:  # the logits are already log p
        np.testing.assert_allclose(logits, log_p, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_losses_and_their_gradients_in_every_mode(mode):
    """With cutoffs, compared with the gradients of the full distribution."""
    model = _model(cutoffs=CUTOFFS, tied_output=True, dtype="float64")
    tokens, targets = _tokens(), _tokens(seed=1)

    def run(losses_of):
        with tf.GradientTape() as tape:
            losses = losses_of()
            total = tf.reduce_sum(losses)
        weights = [variable.value for variable in model.trainable_variables]
        gradients = tape.gradient(total, weights)
        return losses, [tf.convert_to_tensor(gradient) for gradient in gradients]

    found = in_mode(lambda: run(lambda: model(tokens, targets=targets)), mode)()
    losses, gradients = run(lambda: -tf.gather(model(tokens), targets, axis=-1, batch_dims=2))
    np.testing.assert_allclose(found[0], losses, rtol=1e-6)
    for variable, one, other in zip(model.trainable_variables, found[1], gradients, strict=True):
        assert np.abs(one).max() > 1e-6, variable.path
        # The losses are float32 whatever the weights are, and so is what comes back from them.
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("tied", "state_width", "chunk", "mode"),
    fast(
        [
            *((*OUTPUTS[2], *how) for how in CHUNKS),
            *((*output, 5, "eager") for output in OUTPUTS),
        ],
        [(*output, *how) for output in OUTPUTS for how in CHUNKS],
    ),
)
def test_losses_in_chunks_are_the_losses(chunk, tied, state_width, mode):
    """With their gradients: 42 positions in chunks that divide 42, that do not, and that hold all."""
    settings = {"tied_output": tied, "state_width": state_width, "dtype": "float64"}
    model, other = _model(loss_chunk=chunk, **settings), _model(**settings)
    tokens, targets = _tokens(), _tokens(seed=1)
    weights = tf.constant(np.random.default_rng(2).normal(size=tokens.shape), tf.float32)

    def run(model):
        with tf.GradientTape() as tape:
            losses = model(tokens, targets=targets)
            total = tf.reduce_sum(weights * losses)
        gradients = tape.gradient(total, [v.value for v in model.trainable_variables])
        return losses, [tf.convert_to_tensor(gradient) for gradient in gradients]

    found, expected = in_mode(lambda: run(model), mode)(), run(other)
    # The losses are float32 whatever the weights are, and so is what comes back from them.
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6, atol=1e-6)
    for one, two in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("cutoffs", [(), CUTOFFS])
def test_what_is_made_for_the_output(cutoffs, tied):
    model = _model(cutoffs=cutoffs, tied_output=tied, state_width=2 * WIDTH)
    paths = [variable.path for variable in model.trainable_variables]
    assert isinstance(model.embedding, AdaptiveEmbedding) == bool(cutoffs)
    if cutoffs:
        assert isinstance(model.readout, AdaptiveSoftmax)
        assert (model.readout.tied_to is model.embedding) == tied
        assert model.projection is None
    else:
        assert (model.readout is None) == tied
        assert (model.projection is not None) == tied  # to the embedding's width
    assert len(paths) == len(set(paths))


def test_tied_is_the_embedding():
    model = _model(tied_output=True)
    tokens = _tokens()
    x = model.embedding(tokens).numpy()
    h = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    expected = h @ model.embedding.embeddings.numpy().T / np.sqrt(WIDTH)
    np.testing.assert_allclose(model(tokens), expected, rtol=1e-4, atol=1e-5)
    assert len(model.trainable_variables) == 1


@pytest.mark.parametrize("cutoffs", [(), CUTOFFS])
@pytest.mark.parametrize("name", ["input_dropout", "output_dropout"])
def test_dropout_is_locked_over_positions_and_in_training_alone(name, cutoffs):
    model = _model(**{name: 0.5}, cutoffs=cutoffs)
    # The same token everywhere, so only the masks differ between positions.
    tokens = tf.fill([64, LENGTH], 7)
    for arguments in ({}, {"targets": tokens}):
        still = model(tokens, **arguments)
        np.testing.assert_array_equal(model(tokens, **arguments, training=False), still)
        noisy = model(tokens, **arguments, training=True).numpy()
        np.testing.assert_allclose(noisy, np.repeat(noisy[:, :1], LENGTH, axis=1), atol=1e-5)
        assert len(np.unique(noisy[:, 0].round(3), axis=0)) > 32  # each example has its own
        assert np.abs(noisy - still).max() > 0.1
        assert np.abs(noisy - model(tokens, **arguments, training=True)).max() > 0.1
    masked = getattr(model, name)(tf.ones([64, LENGTH, WIDTH]), training=True).numpy()
    assert set(np.unique(masked)) == {0.0, 2.0}
    np.testing.assert_array_equal(masked, np.repeat(masked[:, :1], LENGTH, axis=1))
    assert 0.4 < np.mean(masked == 0) < 0.6


def test_input_dropout_is_on_what_embed_returns():
    model = _model(input_dropout=0.5)
    tokens = _tokens()
    dropped = model.embed(tokens, training=True).numpy()
    known = dropped != 0
    np.testing.assert_allclose(dropped[known], 2 * model.embed(tokens).numpy()[known], rtol=1e-6)
    assert 0.3 < known.mean() < 0.7


@pytest.mark.parametrize("cutoffs", [(), CUTOFFS])
def test_mixed_bfloat16_is_near_float32(cutoffs):
    exact = _model(cutoffs=cutoffs)
    half = _model(cutoffs=cutoffs, dtype="mixed_bfloat16")
    half.set_weights(exact.get_weights())
    tokens, targets = _tokens(), _tokens(seed=1)
    for arguments in ({}, {"targets": targets}):
        found = half(tokens, **arguments)
        assert found.dtype == tf.float32
        # bfloat16 has 8 bits, which is 0.03 for logits of 4, and two are subtracted.
        np.testing.assert_allclose(found, exact(tokens, **arguments), atol=0.06)


@pytest.mark.parametrize(("cutoffs", "tied"), [((), True), (CUTOFFS, False), (CUTOFFS, True)])
def test_saving(cutoffs, tied, tmp_path):
    settings = {"cutoffs": cutoffs, "tied_output": tied, "cutoff_factor": 2}
    model = _model(**settings, input_dropout=0.1, output_dropout=0.2, state_width=2 * WIDTH)
    tokens = _tokens()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(tokens), model(tokens))
    config = loaded.get_config()
    assert config == model.get_config()
    assert [config["input_dropout"], config["output_dropout"]] == [0.1, 0.2]
    assert [config["cutoffs"], config["cutoff_factor"]] == [list(cutoffs), 2]
    if tied and cutoffs:
        assert loaded.readout.tied_to is loaded.embedding
        assert len(loaded.weights) == len(model.weights)


def test_a_model_that_does_not_remember():
    model = _model()
    assert not model.remembers
    with pytest.raises(ValueError, match="Bigram 'bigram.*' has no memory between segments"):
        model.initial_memory(2)
    with pytest.raises(ValueError, match=r"at most 6 long.*shape \(7, 7\)\. Cut the text into"):
        model(_tokens(length=7))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocabulary_size": 0}, "vocabulary_size must be an integer of at least 1; received 0"),
        ({"sequence_length": 0}, "sequence_length must be an integer of at least 1; received 0"),
        ({"width": 1.5}, "width must be an integer of at least 1; received 1.5"),
        ({"input_dropout": 1.0}, r"input_dropout must be in \[0, 1\); received 1.0"),
        ({"output_dropout": -0.5}, r"output_dropout must be in \[0, 1\); received -0.5"),
        ({"loss_chunk": -1}, "loss_chunk must be an integer of at least 0; received -1"),
        ({"cutoffs": (15, 5)}, r"cutoffs must increase; received \(15, 5\)"),
        ({"cutoffs": (5, 40)}, r"cutoffs must be below vocabulary_size, 40; received \(5, 40\)"),
        ({"cutoffs": (5, 15, 20)}, "width must be divisible by .* 4\\^3 = 64; received width 16"),
    ],
)
def test_settings_out_of_range(settings, message):
    defaults = {"vocabulary_size": VOCABULARY, "sequence_length": LENGTH, "width": WIDTH}
    with pytest.raises(ValueError, match=message):
        Bigram(**{**defaults, **settings})
