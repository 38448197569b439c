"""The signatures of language models, and the answers of those without a memory."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import fast
from tests.support.memory_cases import (
    LENGTH,
    MODELS,
    TEXT,
    VOCABULARY,
    WIDTH,
    Served,
    equilibrium,
    explicit,
    trellis,
)
from tfdeq.baselines import Recurrent, TransformerStack
from tfdeq.models import LanguageModel, generate
from tfdeq.models.generation import can_generate
from tfdeq.serving.signatures.language_model_signatures import (
    language_model_signatures,
    signature_names,
)

FUNCTIONS_ARE_KEPT = True  # see tests/conftest.py
CONVERGENCE = {"residual", "steps", "status"}
GENERATING = {"generate", "generate_first", "generate_next"}


@pytest.fixture(scope="module")
def served():
    return functools.cache(lambda name: Served(MODELS[name]()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["span", "trellis", "lstm"])
def test_a_text_that_begins_is_what_score_and_serving_default_say(served, name):
    lengths = np.int32([10, 4, 1])
    answer = served(name)(TEXT[:, :LENGTH], lengths)
    inputs = {
        "tokens": tf.constant(TEXT[:, :LENGTH]),
        "lengths": tf.constant(lengths),
        "tolerance": tf.zeros(3),
        "max_steps": tf.zeros(3, tf.int32),
    }
    for signature, output in (
        ("score", "log_likelihood"),
        ("serving_default", "log_probabilities"),
    ):
        expected = served(name).functions[signature](**inputs)
        np.testing.assert_allclose(answer[output], expected[output], atol=1e-4)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: equilibrium(span=4), {"encode", "step", *GENERATING, "continue_text"}),
        (equilibrium, {"encode", "step", *GENERATING}),
        (trellis, {"encode", "step", *GENERATING, "continue_text"}),
        (lambda: equilibrium(span=4, explicit_steps=2), {"continue_text"}),
        (lambda: equilibrium(explicit_steps=2), set()),
        (lambda: explicit(Recurrent(WIDTH)), {"continue_text"}),
        (lambda: explicit(TransformerStack(WIDTH, 2, LENGTH, layers=1)), set()),
    ],
)
def test_signatures_that_make_sense(make, names):
    model = make()
    assert {*signature_names(model)} == {"serving_default", "score", *names}


def test_explicit_networks_have_nothing_to_solve():
    model = explicit(Recurrent(WIDTH, layers=2))
    signatures = language_model_signatures(model)
    lengths = [LENGTH, 4]
    inputs = {
        "tokens": tf.constant(TEXT[:2, :LENGTH]),
        "lengths": tf.constant(lengths),
        "tolerance": tf.constant([1e-4, 0.0]),
        "max_steps": tf.constant([1, 0]),
    }
    answer = signatures["serving_default"].function(**inputs)
    scores = signatures["score"].function(**inputs)["log_likelihood"]
    assert answer["residual"].numpy().tolist() == [0, 0]
    assert answer["steps"].numpy().tolist() == [2, 2]
    assert (answer["status"] == tfdeq.Status.CONVERGED).numpy().all()
    for row, length in enumerate(lengths):
        text = TEXT[row, :length]
        expected = tf.nn.log_softmax(model(text[None]))[0].numpy()
        np.testing.assert_allclose(answer["log_probabilities"][row], expected[-1], atol=1e-5)
        of_tokens = expected[np.arange(length - 1), text[1:]]
        np.testing.assert_allclose(scores[row, 1:length], of_tokens, atol=1e-5)


@pytest.mark.parametrize("name", fast(["span"], ["span", "trellis"]))
@pytest.mark.slow
def test_padding_changes_neither_answers_nor_residuals(served, name):
    """For the signatures without a memory; a `TrellisCell` sums over all positions so far."""
    for signature in ("serving_default", "score", "encode"):
        function = served(name).functions[signature]
        alone = {
            "tokens": TEXT[:1, :4],
            "lengths": np.int32([4]),
            "tolerance": np.zeros(1, np.float32),
            "max_steps": np.zeros(1, np.int32),
        }
        expected = function(**{key: tf.constant(value) for key, value in alone.items()})
        for padding in (0, VOCABULARY - 1, 2**31 - 1):
            alone["tokens"] = np.pad(TEXT[:1, :4], [(0, 0), (0, 5)], constant_values=padding)
            found = function(**{key: tf.constant(value) for key, value in alone.items()})
            assert found["steps"] == expected["steps"]
            np.testing.assert_allclose(found["residual"], expected["residual"], atol=2e-7)
            for output in found.keys() - CONVERGENCE:
                value = found[output].numpy()
                if output != "log_probabilities":
                    assert not value[:, 4:].any()
                    value = value[:, :4]
                np.testing.assert_allclose(value, expected[output], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param("span", "xla", marks=pytest.mark.slow),
        ("long span, cutoffs", "graph"),
        pytest.param("trellis", "graph", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_generate_is_decoding_by_whole_texts(served, name, mode):
    model = served(name).model
    logits = tf.function(
        lambda text: model(text)[0, -1],
        input_signature=[tf.TensorSpec([1, None], tf.int32)],
        autograph=False,
    )
    lengths = np.int32([4, 1, 7])
    continued = tf.function(
        lambda tokens, lengths: generate(model, tokens, lengths),
        jit_compile=mode == "xla",
        autograph=False,
    )
    found = continued(tf.constant(TEXT[:, :7]), tf.constant(lengths))
    for row, length in enumerate(lengths):
        text = TEXT[row, :length].tolist()
        while len(text) < LENGTH:
            text.append(int(np.argmax(logits(np.int32([text])))))
        assert found.lengths[row] == LENGTH - length
        np.testing.assert_array_equal(found.tokens[row, : LENGTH - length], text[length:])


def test_models_that_cannot_generate():
    class Cell(keras.layers.Layer):
        """Causal, and without a past."""

        def call(self, z, x):
            return 0.5 * keras.ops.tanh(z) + x

    model = LanguageModel(VOCABULARY, LENGTH, Cell(), WIDTH)
    model.build((None, LENGTH))
    assert not can_generate(model)
    with pytest.raises(ValueError, match="Cell has no initial_past and remember"):
        generate(model, TEXT[:1, :3])
    with pytest.raises(ValueError, match="received ExplicitLanguageModel"):
        generate(explicit(Recurrent(WIDTH)), TEXT[:1, :3])
    assert {*signature_names(model)} == {"serving_default", "score", "encode", "step"}
    assert language_model_signatures(model).keys() == {*signature_names(model)}
