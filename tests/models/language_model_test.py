"""Tests of tfdeq.models.language_model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import fast
from tfdeq.cells import TransformerCell
from tfdeq.models import LanguageModel

VOCABULARY, LENGTH = 11, 8


def _model(**settings):
    keras.utils.set_random_seed(0)
    own = {name: settings.pop(name) for name in ("dropout",) if name in settings}
    cell = TransformerCell(
        8, 2, LENGTH, **{"recurrent_scale": 0.5, **own}, dtype=settings.get("dtype")
    )
    settings = {"solver": tfdeq.Anderson(60, 1e-6), "cell": cell, **settings}
    return LanguageModel(VOCABULARY, LENGTH, **settings)


def _tokens(batch=3, length=LENGTH):
    return np.random.default_rng(0).integers(0, VOCABULARY, size=(batch, length)).astype("int32")


@pytest.mark.parametrize("tied", fast([True], [False, True]))
def test_logits(tied):
    model = _model(tied_output=tied)
    tokens = _tokens()
    logits, solution = model(tokens, return_solution=True)
    assert logits.shape == (3, LENGTH, VOCABULARY)
    assert logits.dtype == tf.float32
    assert solution.converged.numpy().all()
    h = solution.z / np.sqrt(np.mean(np.square(solution.z), axis=-1, keepdims=True) + 1e-5)
    variable = model.embedding.embeddings if tied else model.readout.kernel
    matrix = variable.numpy().T / np.sqrt(8) if tied else variable.numpy()
    np.testing.assert_allclose(logits, h @ matrix, rtol=1e-4, atol=1e-5)
    assert (model.readout is None) == tied


@pytest.mark.slow
def test_causal():
    model = _model()
    tokens = _tokens()
    other = tokens.copy()
    other[:, 5:] = (other[:, 5:] + 1) % VOCABULARY
    before, after = model(tokens).numpy(), model(other).numpy()
    # The solves stop at 1e-6 of the state's norm.
    np.testing.assert_allclose(after[:, :5], before[:, :5], atol=1e-3)
    assert np.abs(after[:, 5:] - before[:, 5:]).max() > 1e-2
    np.testing.assert_allclose(model(tokens[:, :5]), before[:, :5], atol=1e-3)


def test_quality_dial_by_example():
    _, solution = _model(solver="anderson")(
        _tokens(),
        tolerance=tf.constant([1e-1, 1e-4, 1e-4]),
        max_steps=tf.constant([40, 40, 2]),
        return_solution=True,
    )
    assert solution.steps[0] < solution.steps[1]
    assert solution.residual[1] <= 1e-4
    assert solution.steps[2] == 2


def test_explicit_steps_of_the_model_and_of_the_call():
    model = _model(explicit_steps=2)
    tokens = _tokens()
    x = model.embed(tokens)
    injected = model.cell.inject(x)
    z = tf.zeros_like(x)
    for _ in range(2):
        z = model.cell(z, injected)
    np.testing.assert_allclose(model(tokens), model.logits(z), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        model(tokens, explicit_steps=1),
        model.logits(model.cell(tf.zeros_like(x), injected)),
        rtol=1e-5,
        atol=1e-6,
    )
    _, solution = model(tokens, explicit_steps=0, return_solution=True)
    assert solution.converged.numpy().all()


@pytest.mark.slow
def test_fit_save_and_load(tmp_path):
    model = _model(dropout=0.1, jacobian_penalty=0.5, solver="anderson")
    tokens = _tokens(32)
    model.compile(
        keras.optimizers.Adam(1e-2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    logs = model.fit(tokens[:, :-1], tokens[:, 1:], epochs=3, batch_size=8, verbose=0).history
    assert logs["loss"][-1] < logs["loss"][0]
    assert logs["equilibrium_converged"][-1] == 1.0
    assert logs["equilibrium_backward_converged"][-1] == 1.0
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(tokens), model(tokens), rtol=1e-5, atol=1e-5)
    assert loaded.get_config() == model.get_config()


def test_policy_survives_saving(tmp_path):
    """A model saved under a mixed policy computes in that policy under any policy at loading."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = _model(solver=tfdeq.Anderson(tolerance=2e-2))
    tokens = _tokens()
    expected = model(tokens)
    model.save(tmp_path / "model.keras")
    keras.config.set_dtype_policy("float32")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(tokens), expected, rtol=1e-6)


def test_padding_changes_neither_answers_nor_residuals():
    model = _model()
    tokens = _tokens()
    mask = np.array([[True] * LENGTH, [True] * 5 + [False] * 3, [True] * 2 + [False] * 6])
    padded, solution = model(tokens, mask=mask, return_solution=True)
    for row, length in enumerate((LENGTH, 5, 2)):
        alone, own = model(tokens[row : row + 1, :length], return_solution=True)
        np.testing.assert_allclose(padded[row, :length], alone[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(solution.residual[row], own.residual[0], atol=1e-6)
        assert solution.steps[row] == own.steps[0]


def test_symbolic_call_knows_its_outputs():
    logits, solution = _model()(keras.Input((LENGTH,), dtype="int32"), return_solution=True)
    assert logits.shape == (None, LENGTH, VOCABULARY)
    assert solution.z.shape == (None, LENGTH, 8)
    assert solution.steps.dtype == "int32"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocabulary_size": 0}, "vocabulary_size must be an integer of at least 1; received 0"),
        ({"sequence_length": 0}, "sequence_length must be an integer of at least 1; received 0"),
        ({"explicit_steps": -1}, "explicit_steps must be an integer of at least 0; received -1"),
        ({"cell": keras.layers.Layer()}, "does not say its width"),
        ({"solver": "newton"}, "Unknown solver 'newton'"),
        ({"adjoint": "magic"}, "Unknown adjoint 'magic'"),
    ],
)
def test_bad_settings(settings, message):
    defaults = {"vocabulary_size": 5, "sequence_length": 4, "cell": TransformerCell(8, 2, 4)}
    with pytest.raises(ValueError, match=message):
        LanguageModel(**{**defaults, **settings})


def test_text_too_long():
    model = _model()
    model(_tokens())
    with pytest.raises(ValueError, match=r"at most 8 long.*received shape \(3, 9\).*into windows"):
        model(_tokens(length=LENGTH + 1))
