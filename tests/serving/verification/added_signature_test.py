"""A new signature of the language models needs only one class and one line."""

import json

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import contracting_language_model
from tfdeq.serving.server import isolated
from tfdeq.serving.signatures import language_model_signatures, text
from tfdeq.serving.signatures.signature import CONVERGENCE
from tfdeq.serving.signatures.text import Score, ServingDefault
from tfdeq.serving.signatures.text.text_signature import Input, TextSignature
from tfdeq.serving.signatures.text_requests import checked, next_log_probabilities, solve
from tfdeq.serving.verification import checks, language_model_checks, verify
from tfdeq.serving.versions import model_card, saved_model, warm_up

VOCABULARY, LENGTH = 17, 8
BATCH_SIZES = [1, 4]
STREAM = np.random.default_rng(7).integers(0, VOCABULARY, 400).astype(np.int32)
WINDOWS = STREAM[: 8 * LENGTH].reshape(8, LENGTH)


class TopToken(TextSignature):
    """The most likely next token, with a bias for some tokens."""

    name = "top_token"

    def inputs(self, model):
        spec = tf.TensorSpec([None, model.vocabulary_size], tf.float32, "bias")
        return [Input(spec, "[B, V] float32: added to the log probabilities.")]

    def outputs(self, model):
        return {"token": "[B] int32: the likeliest token; −1: invalid example.", **CONVERGENCE}

    def answer(self, model, given, solving):
        asked = checked(model, given)
        solved = solve(model, asked, given, solving)
        likely = next_log_probabilities(model, asked, solved.z) + given["bias"]
        token = tf.argmax(likely, axis=-1, output_type=tf.int32)
        return {"token": tf.where(asked.answered, token, -1), **solved.convergence}

    def invalid(self, output, given):
        return -1

    def warm_up_inputs(self, model, lengths):
        return {"bias": np.ones([len(lengths), model.vocabulary_size], np.float32)}

    def asked_inputs(self, model, count):
        bias = np.random.default_rng(0).normal(size=[1, model.vocabulary_size])
        return {"bias": np.repeat(np.float32(bias), count, axis=0)}

    def reference(self, keras_model, given):
        (read,) = keras_model.read(given)
        likely = read.log_probabilities[-1] + given["bias"][0]
        return {"token": np.int32(likely.argmax()), **read.convergence}


class AnotherToken(TopToken):
    """A reference without the bias."""

    def reference(self, keras_model, given):
        return super().reference(keras_model, {**given, "bias": 0 * given["bias"]})


@pytest.fixture(scope="module")
def model():
    return contracting_language_model(VOCABULARY, LENGTH, tfdeq.Anderson(40, 1e-3))


@pytest.fixture
def registered(monkeypatch):
    """Adds a signature to the registry during a test."""

    def register(signature):
        monkeypatch.setitem(text.REGISTRY, signature.name, signature)

    # Added to the signatures that every version has; all of them would take minutes.
    names = (ServingDefault.name, Score.name)
    monkeypatch.setattr(text, "REGISTRY", {name: text.REGISTRY[name] for name in names})
    register(TopToken())
    return register


@pytest.fixture(scope="module")
def signatures(model):
    with pytest.MonkeyPatch.context() as patch:
        served = (ServingDefault(), TopToken())
        patch.setattr(text, "REGISTRY", {each.name: each for each in served})
        return language_model_signatures.language_model_signatures(model)


def described_well(card):
    assert next(iter(card["signatures"])) == "serving_default"
    described = card["signatures"]["top_token"]
    assert described["inputs"].keys() == {"tokens", "lengths", "tolerance", "max_steps", "bias"}
    assert described["inputs"]["bias"] == {
        "dtype": "float32",
        "shape": [None, VOCABULARY],
        "meaning": "[B, V] float32: added to the log probabilities.",
    }
    assert described["outputs"].keys() == {"token", *CONVERGENCE}
    assert described["outputs"]["token"]["dtype"] == "int32"


def test_the_card_describes_it(signatures):
    described_well({"signatures": model_card.signature_card(signatures)})


def test_warm_up_records_have_it_at_each_batch_size(registered, model, signatures):
    examples = language_model_signatures.examples(WINDOWS, model)
    records = warm_up.requests(signatures, examples, BATCH_SIZES)
    found = [inputs for name, inputs in records if name == "top_token"]
    assert [len(inputs["tokens"]) for inputs in found] == BATCH_SIZES
    assert all((inputs["bias"] == 1).all() for inputs in found)


@pytest.mark.parametrize(
    "signature", [pytest.param(TopToken(), marks=pytest.mark.slow), AnotherToken()]
)
def test_its_answers_are_compared_with_its_reference(signature, registered, model, signatures):
    registered(signature)
    asked = [
        request
        for request in language_model_checks.batch_requests(model, WINDOWS)
        if request.signature == signature.name
    ]
    assert len(asked) == 4
    outputs = []
    for request in asked:
        inputs = {name: tf.constant(value) for name, value in request.inputs.items()}
        found = signatures[signature.name].function(**inputs)
        outputs.append({name: value.numpy() for name, value in found.items()})
    references = language_model_checks.KerasModel(model, 100).references(asked)
    check = checks.check_against_model(asked, outputs, references, 1e-3, "python")
    assert check.passed == (type(signature) is TopToken), check.text


@pytest.mark.slow
def test_a_version_with_it_is_verified_in_both_runtimes(registered, model, tmp_path, monkeypatch):
    asked = {}
    answer = isolated.answer

    def kept(path, requests, runtime, *arguments):
        asked[runtime] = {each.name for each in requests if each.signature == "top_token"}
        return answer(path, requests, runtime, *arguments)

    def wrong():
        found, _ = verify.verify(model, path, {"tokens": STREAM})
        return {check.name: check.text for check in found if not check.passed}

    monkeypatch.setattr(isolated, "answer", kept)
    examples = language_model_signatures.examples(WINDOWS, model)
    path = saved_model.export(model, tmp_path, examples=examples, batch_sizes=BATCH_SIZES)
    card = json.loads((path / "assets.extra" / "model_card.json").read_text())
    described_well(card)
    assert card["signatures"]["top_token"]["joined"]
    assert [*card["signatures"]] == [*language_model_signatures.signature_names(model)]
    records = [inputs for name, inputs in warm_up.read(path) if name == "top_token"]
    assert [len(inputs["tokens"]) for inputs in records] == BATCH_SIZES

    assert wrong() == {}
    assert asked.keys() == isolated.RUNTIMES.keys()
    for names in asked.values():
        assert names >= {"batch of 8", "settings", "alone", "in a crowd", "warm-up", "invalid"}

    registered(AnotherToken())
    failed = wrong()
    assert failed.keys() == {f"{name}: equal to the Keras model" for name in isolated.RUNTIMES}
    assert all("top_token" in said for said in failed.values())
