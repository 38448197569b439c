"""The signatures of a language model: values, dial, padding, neighbours and bad examples."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import contracting_language_model, fast
from tfdeq.cells import TransformerCell
from tfdeq.models import LanguageModel, generate
from tfdeq.serving.signatures.language_model_signatures import examples, language_model_signatures
from tfdeq.serving.signatures.signature import (
    INVALID,
    MAX_STEPS_LIMIT,
    input_specs,
    solving_of,
)
from tfdeq.serving.signatures.text import ServingDefault
from tfdeq.serving.verification import graph_checks

FUNCTIONS_ARE_KEPT = True  # see tests/conftest.py
VOCABULARY, LENGTH = 17, 12


@pytest.fixture(scope="module")
def model():
    return contracting_language_model(
        VOCABULARY, LENGTH, tfdeq.Anderson(max_steps=40, tolerance=1e-3)
    )


@pytest.fixture(scope="module")
def signatures(model):
    return functions_of(model)


def functions_of(model):
    return {
        name: signature.function for name, signature in language_model_signatures(model).items()
    }


@pytest.fixture
def tokens():
    return np.random.default_rng(5).integers(0, VOCABULARY, (8, LENGTH)).astype(np.int32)


def call(function, tokens, lengths, tolerance=None, max_steps=None, **given):
    """Calls a signature; inputs that are not given are 0, and there is no stop token."""
    batch = len(tokens)
    given = {
        "tokens": tokens,
        "lengths": lengths,
        "tolerance": np.zeros(batch) if tolerance is None else tolerance,
        "max_steps": np.zeros(batch) if max_steps is None else max_steps,
        "stop_token": np.full(batch, -1),
        "segment_tokens": np.full(batch, 2),
        "equilibrium": np.zeros([batch, 0, 16]),
        **given,
    }
    specs = input_specs(function)
    for name in specs.keys() - given.keys():
        given[name] = np.zeros([batch, *specs[name].shape[1:]])
    inputs = {name: tf.constant(given[name], spec.dtype) for name, spec in specs.items()}
    return {name: value.numpy() for name, value in function(**inputs).items()}


def test_functions_write_nothing_call_no_python_and_are_not_compiled(model, signatures):
    generating = {"generate", "generate_first", "generate_next"}
    assert signatures.keys() == {"serving_default", "score", "encode", "step", *generating}
    before = [variable.numpy() for variable in model.variables]
    for function in signatures.values():
        assert graph_checks.problems(function) == []
        call(function, np.ones([2, 3]), [3, 1])
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_inputs_and_outputs_have_the_batch_in_front(signatures):
    for function in signatures.values():
        specs = [*input_specs(function).values(), *function.structured_outputs.values()]
        assert all(spec.shape.rank >= 1 and spec.shape[0] is None for spec in specs)


def test_answers_are_the_models(model, signatures, tokens):
    lengths = np.array([12, 1, 5, 12, 3, 7, 11, 2])
    default = call(signatures["serving_default"], tokens, lengths)
    score = call(signatures["score"], tokens, lengths)
    for row, length in enumerate(lengths):
        logits, solution = model(tokens[row : row + 1, :length], return_solution=True)
        expected = tf.nn.log_softmax(logits)[0].numpy()
        np.testing.assert_allclose(default["log_probabilities"][row], expected[-1], atol=1e-5)
        likelihood = np.zeros(LENGTH)
        likelihood[1:length] = [expected[t - 1, tokens[row, t]] for t in range(1, length)]
        np.testing.assert_allclose(score["log_likelihood"][row], likelihood, atol=1e-5)
        for outputs in (default, score):
            assert outputs["steps"][row] == solution.steps[0]
            assert outputs["status"][row] == solution.status[0] == tfdeq.Status.CONVERGED
            np.testing.assert_allclose(outputs["residual"][row], solution.residual[0], rtol=1e-2)


def test_dial_of_each_example_in_one_call(signatures, tokens):
    tolerances = np.float32([1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
    outputs = call(
        signatures["serving_default"], tokens[[0] * 5], [LENGTH] * 5, tolerances, [100] * 5
    )
    assert (outputs["status"] == tfdeq.Status.CONVERGED).all()
    assert (outputs["residual"] <= tolerances).all()
    assert (np.diff(outputs["residual"]) < 0).all()
    assert (np.diff(outputs["steps"]) > 0).all()


def test_settings_that_mean_the_models_own(signatures, tokens):
    function = signatures["serving_default"]
    rows = tokens[[0] * 4]
    own = call(function, rows, [LENGTH] * 4)
    # The model's own settings for each of these; the last one gives its own tolerance explicitly.
    same = call(function, rows, [LENGTH] * 4, [-1.0, 0.0, np.nan, 1e-3], [-5, 0, 40, 40])
    for name in own:
        np.testing.assert_allclose(own[name], same[name], atol=1e-6)
    few = call(function, rows, [LENGTH] * 4, [1e-6] * 4, [1, 2, 3, 4])
    assert few["steps"].tolist() == [1, 2, 3, 4]
    assert (few["status"] == tfdeq.Status.MAX_STEPS).all()


@pytest.mark.parametrize("width", fast([LENGTH + 9], [6, LENGTH, LENGTH + 9]))
def test_padding_does_not_matter(signatures, tokens, width):
    alone, lengths = tokens[:4, :5], [5] * 4
    padding = np.tile(np.int32([[0], [16], [-7], [2**31 - 1]]), width - 5)
    padded = np.concatenate([alone, padding], axis=1)
    for name, function in signatures.items():
        expected, received = call(function, alone, lengths), call(function, padded, lengths)
        for output in {"log_likelihood", "equilibrium"} & received.keys():
            assert received[output].shape[:2] == (4, width), name
            assert not received[output][:, 5:].any()
            received[output] = received[output][:, :5]
        np.testing.assert_array_equal(received["steps"], expected["steps"])
        for output in expected:
            np.testing.assert_allclose(received[output], expected[output], rtol=1e-3, atol=1e-6)


def test_neighbours_do_not_matter(signatures, tokens):
    lengths = [1, 12, 3, 7, 12, 5, 0, 9]
    tolerances = [1e-1, 1e-5, 1e-2, 0, 1e-4, 1e-3, 0, 1e-2]
    for function in signatures.values():
        together = call(function, tokens, lengths, tolerances)
        for row in range(8):
            alone = call(
                function, tokens[row : row + 1], lengths[row : row + 1], tolerances[row : row + 1]
            )
            assert alone["steps"][0] == together["steps"][row]
            assert alone["status"][0] == together["status"][row]
            for name in alone.keys() - {"residual"}:
                np.testing.assert_allclose(alone[name][0], together[name][row], atol=1e-5)


def test_bad_examples_are_marked_and_harm_no_other(signatures, tokens):
    tokens[3, 2], tokens[4, 1] = VOCABULARY, -1
    lengths = np.array([12, 0, -3, 12, 12, 13, 12, 2**31 - 1])
    bad = np.array([1, 2, 3, 4, 5, 7])
    for name, function in signatures.items():
        outputs = call(function, tokens, lengths)
        assert (outputs["status"][bad] == INVALID).all()
        assert (outputs["steps"][bad] == 0).all()
        assert (outputs["status"][[0, 6]] == tfdeq.Status.CONVERGED).all()
        assert all(np.isfinite(value).all() for value in outputs.values())
        if "log_probabilities" in outputs:
            np.testing.assert_allclose(outputs["log_probabilities"][bad], -np.log(VOCABULARY))
        for output in {"log_likelihood", "equilibrium", "prompt_steps"} & outputs.keys():
            assert not outputs[output][bad].any()
        if name.startswith("generate"):
            assert (outputs["tokens"][bad] == -1).all()
            assert not outputs["lengths"][bad].any()
            assert (outputs["finish"][bad] == INVALID).all()


@pytest.mark.parametrize(
    ("batch", "width"), fast([(0, 5), (2, LENGTH + 1)], [(0, 5), (2, 0), (2, 1), (2, LENGTH + 1)])
)
def test_shapes_at_the_border(signatures, batch, width):
    shape = (batch, width)
    default = call(signatures["serving_default"], np.zeros(shape), np.full(batch, width))
    score = call(signatures["score"], np.zeros(shape), np.full(batch, width))
    assert default["log_probabilities"].shape == (batch, VOCABULARY)
    assert score["log_likelihood"].shape == shape
    answered = 1 <= width <= LENGTH
    assert ((default["status"] != INVALID) == answered).all()
    assert ((score["status"] != INVALID) == answered).all()


def test_explicit_applications_are_served_too(tokens):
    cell = TransformerCell(16, 2, LENGTH, recurrent_scale=1.0)
    model = LanguageModel(VOCABULARY, LENGTH, cell, explicit_steps=2)
    model.build((None, LENGTH))
    functions = functions_of(model)
    assert "generate" not in functions
    outputs = call(functions["serving_default"], tokens[:2], [LENGTH, 4])
    for row, length in enumerate([LENGTH, 4]):
        expected = tf.nn.log_softmax(model(tokens[row : row + 1, :length]))[0, -1]
        np.testing.assert_allclose(outputs["log_probabilities"][row], expected, atol=1e-5)
    assert (outputs["steps"] == 2).all()


def test_weights_that_are_not_finite_give_a_status_and_finite_residuals(tokens):
    model = LanguageModel(VOCABULARY, LENGTH, TransformerCell(16, 2, LENGTH, recurrent_scale=1.0))
    model.build((None, LENGTH))
    model.cell.contract.kernel.assign(np.full(model.cell.contract.kernel.shape, np.nan))
    function = ServingDefault().traced(model, solving_of(model), False).function
    outputs = call(function, tokens[:2], [LENGTH, 4])
    assert (outputs["status"] == tfdeq.Status.NON_FINITE).all()
    assert np.isfinite(outputs["residual"]).all()


def test_encode_is_the_equilibrium_and_step_starts_from_it(model, signatures, tokens):
    lengths = [12, 4, 7]
    encoded = call(signatures["encode"], tokens[:3], lengths)
    for row, length in enumerate(lengths):
        _, solution = model(tokens[row : row + 1, :length], return_solution=True)
        np.testing.assert_allclose(encoded["equilibrium"][row, :length], solution.z[0], atol=1e-5)
    cold = call(signatures["serving_default"], tokens[:3], lengths)
    z, count = encoded["equilibrium"], lengths
    again = call(signatures["step"], tokens[:3], lengths, equilibrium=z, equilibrium_lengths=count)
    assert (again["steps"] == 1).all()
    np.testing.assert_allclose(again["log_probabilities"], cold["log_probabilities"], atol=1e-2)
    # A stream grows: the last equilibrium is one token shorter than the text.
    count = [11, 3, 6]
    z = call(signatures["encode"], tokens[:3, :11], count)["equilibrium"]
    grown = call(signatures["step"], tokens[:3], lengths, equilibrium=z, equilibrium_lengths=count)
    assert (grown["steps"] < cold["steps"]).all()
    # A server's padding after a shorter start does not matter.
    for row, length in enumerate(count):
        z[row, length:] = z[row, 0, 0] if row else np.nan
    padded = call(signatures["step"], tokens[:3], lengths, equilibrium=z, equilibrium_lengths=count)
    np.testing.assert_array_equal(padded["steps"], grown["steps"])
    lost = np.full_like(z, np.nan)
    usual = call(
        signatures["step"], tokens[:3], lengths, equilibrium=lost, equilibrium_lengths=count
    )
    np.testing.assert_array_equal(usual["steps"], cold["steps"])


@pytest.mark.slow
def test_generate_is_the_models(model, signatures, tokens):
    options = {
        "max_new_tokens": [3, 0, 2, 4],
        "temperature": [0.0, 1.0, 0.5, 2.0],
        "top_k": [0, 3, 0, 0],
        "top_p": [0.0, 0.0, 0.8, 0.0],
        "seed": [0, 1, 2, 3],
    }
    lengths = np.int32([9, 1, 4, 7])
    found = call(signatures["generate"], tokens[:4, :9], lengths, **options)
    expected = generate(model, tokens[:4, :9], lengths, **options)
    for name, value in expected._asdict().items():
        if name == "residual":
            np.testing.assert_allclose(found[name], value, rtol=0.05)
        else:
            np.testing.assert_array_equal(found[name], value)


def test_a_request_cannot_ask_for_endless_steps(signatures, tokens):
    limit = call(signatures["serving_default"], tokens[:1], [LENGTH], [1e-30], [2**31 - 1])["steps"]
    assert limit[0] <= MAX_STEPS_LIMIT


@pytest.mark.slow
def test_a_tolerance_alone_is_reached(tokens):
    model = contracting_language_model(VOCABULARY, LENGTH, tfdeq.Anderson(3, 1e-3))
    for name, signature in language_model_signatures(model).items():
        found = call(signature.function, tokens[:2, :4], [4, 4], [1e-4, 0.0], [0, 0])
        if name.startswith("generate"):
            assert found["residual"][0] <= 1e-4, name
            continue
        assert (found["status"][0], found["steps"][1]) == (tfdeq.Status.CONVERGED, 3), name
        assert found["residual"][0] <= 1e-4, name


def test_examples_for_the_warm_up_leave_room(model):
    windows = np.zeros([3, LENGTH], np.int32)
    found = examples(windows, model)
    assert (found["lengths"] == LENGTH - 2).all()
    assert (examples(windows[:, :1], model)["lengths"] == 1).all()


def test_another_kind_of_model():
    with pytest.raises(TypeError, match=r"LanguageModel; received Sequential"):
        language_model_signatures(keras.Sequential())
