"""`continue_text`: memory is passed from call to call, for examples of different lengths."""

import functools

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
    Served,
    converse,
    equilibrium,
    memory_in,
    trellis,
)
from tfdeq.serving.signatures.signature import INVALID, input_specs
from tfdeq.serving.signatures.text.continue_text import model_memory, named_memory
from tfdeq.serving.verification import graph_checks

FUNCTIONS_ARE_KEPT = True  # see tests/conftest.py
NAMES = {
    "span": ["memory_key", "memory_length", "memory_value"],
    "long span, cutoffs": ["memory_key", "memory_length", "memory_value"],
    "trellis": ["memory_c", "memory_h", "memory_input"],
    "lstm": ["memory_0_0", "memory_0_1", "memory_1_0", "memory_1_1"],
    "tcn": ["memory_0_first", "memory_0_second", "memory_1_first", "memory_1_second"],
    "transformer": [
        *("memory_key_0", "memory_key_1", "memory_length", "memory_value_0", "memory_value_1"),
    ],
    "trellisnet": ["memory_c_0", "memory_c_1", "memory_h_0", "memory_h_1", "memory_input"],
}
SETTINGS = {"tolerance", "max_steps"}
CONVERGENCE = {"residual", "steps", "status"}


# The lengths of three examples in each call; their sums are equal.
CALLS = np.int32([[10, 6, 1], [1, 10, 6], [6, 1, 10]])


@pytest.fixture(scope="module")
def served():
    return functools.cache(lambda name: Served(MODELS[name]()))


@pytest.fixture(params=fast(["span", "lstm"], MODELS))
def any_served(request, served):
    return served(request.param)


def in_one_piece(model, text):
    """Returns log likelihoods of a text after its first token, log p of the next one, and the memory."""
    found = model(text[None], memory=model.initial_memory(1))
    log_probabilities = tf.nn.log_softmax(found[0])[0].numpy()
    memory = named_memory(model, found[-1])
    places = np.arange(len(text) - 1)
    return log_probabilities[places, text[1:]], log_probabilities[-1], memory


@pytest.mark.parametrize("name", fast(["span", "lstm"], MODELS))
def test_names_are_stable_and_the_same_in_and_out(served, name):
    signature = served(name).signature
    taken = {"tokens", "lengths", *SETTINGS, *NAMES[name]}
    returned = {"log_probabilities", "log_likelihood", *CONVERGENCE, *NAMES[name]}
    assert input_specs(signature.function).keys() == signature.inputs.keys() == taken
    assert signature.function.structured_outputs.keys() == signature.outputs.keys() == returned
    for spec in [
        *input_specs(signature.function).values(),
        *signature.function.structured_outputs.values(),
    ]:
        assert spec.shape[0] is None
    for leaf in NAMES[name]:
        assert input_specs(signature.function)[leaf].shape[1:].is_fully_defined()
        assert "zeros" in signature.inputs[leaf]
    assert graph_checks.problems(signature.function) == []


def test_segments_are_the_whole_text(any_served):
    texts = TEXT[:, : CALLS.sum(axis=0)[0]]
    found, last = converse(any_served, texts, CALLS)
    for row, text in enumerate(texts):
        expected, following, memory = in_one_piece(any_served.model, text)
        # The solves stop at 1e-6 of a whole state's norm.
        np.testing.assert_allclose(found[row], expected, atol=1e-4)
        np.testing.assert_allclose(last["log_probabilities"][row], following, atol=1e-4)
        for name, value in memory.items():
            np.testing.assert_allclose(last[name][row], value[0], atol=1e-4, err_msg=name)
    assert (last["status"] == tfdeq.Status.CONVERGED).all()


def test_padding_and_neighbours_do_not_matter(any_served):
    before = memory_in(any_served(TEXT[:, :7], [7, 2, 5]))
    lengths = np.int32([4, 10, 1])
    together = any_served(TEXT[:, 10:20], lengths, before)
    for row, length in enumerate(lengths):
        own = {name: value[row : row + 1] for name, value in before.items()}
        alone = any_served(TEXT[row : row + 1, 10 : 10 + length], [length], own)
        padded = np.full([1, LENGTH + 9], 2**31 - 1, np.int32)
        padded[:, :length] = TEXT[row, 10 : 10 + length]
        padded = any_served(padded, [length], own)
        for other, place in ((together, row), (padded, 0)):
            assert other["steps"][place] == alone["steps"][0]
            assert other["status"][place] == alone["status"][0]
            # Below the tolerance of 1e-6, residuals are mostly rounding.
            np.testing.assert_allclose(other["residual"][place], alone["residual"][0], atol=2e-7)
            assert not other["log_likelihood"][place, length:].any()
            np.testing.assert_allclose(
                other["log_likelihood"][place, :length], alone["log_likelihood"][0], atol=1e-5
            )
            for name in ["log_probabilities", *before]:
                np.testing.assert_allclose(
                    other[name][place], alone[name][0], atol=1e-5, err_msg=name
                )


def test_bad_texts_keep_their_memory_and_harm_no_other(any_served):
    texts = np.repeat(TEXT[:1, :LENGTH], 6, axis=0)
    before = memory_in(any_served(texts[:, :3], [3] * 6))
    texts[2, 1], texts[3, 0] = VOCABULARY, -1
    lengths = np.int32([10, 0, 10, 10, 11, 10])
    good, bad = [0, 5], [1, 2, 3, 4]
    answer = any_served(texts, lengths, before)
    assert (answer["status"][bad] == INVALID).all()
    assert not answer["steps"][bad].any()
    assert not answer["log_likelihood"][bad].any()
    np.testing.assert_allclose(answer["log_probabilities"][bad], -np.log(VOCABULARY), rtol=1e-6)
    expected = any_served(texts[:1], [10], {name: value[:1] for name, value in before.items()})
    for name, value in answer.items():
        assert np.isfinite(value).all(), name
        np.testing.assert_allclose(value[good], expected[name][[0, 0]], rtol=1e-3, atol=1e-5)
        if name in before:
            np.testing.assert_array_equal(value[bad], before[name][bad])


@pytest.mark.parametrize("number", fast([np.inf], [np.nan, np.inf, -np.inf]))
def test_a_memory_that_is_not_finite_is_invalid_and_harms_no_other(any_served, number):
    texts = np.repeat(TEXT[:1, :LENGTH], 4, axis=0)
    before = memory_in(any_served(texts[:, :3], [3] * 4))
    leaf = next(name for name, value in before.items() if value.dtype.kind == "f")
    sick = {name: value.copy() for name, value in before.items()}
    sick[leaf][1].flat[0] = number
    sick[leaf][2] = number
    expected, answer = any_served(texts, [10] * 4, before), any_served(texts, [10] * 4, sick)
    assert (answer["status"] == [0, INVALID, INVALID, 0]).all()
    for name, value in answer.items():
        assert np.isfinite(value).all(), name
        np.testing.assert_allclose(value[[0, 3]], expected[name][[0, 3]], rtol=1e-3, atol=1e-5)
        if name in before:
            assert not value[[1, 2]].any(), name  # an empty memory


def test_a_memory_that_overflows_harms_no_other(any_served):
    """The memory is finite but useless: the answer to its own text is finite, and others do not change."""
    texts = np.repeat(TEXT[:1, :LENGTH], 3, axis=0)
    before = memory_in(any_served(texts[:, :3], [3] * 3))
    huge = {name: value.copy() for name, value in before.items()}
    for value in huge.values():
        if value.dtype.kind == "f":
            value[1] = 3e38
    expected, answer = any_served(texts, [10] * 3, before), any_served(texts, [10] * 3, huge)
    for name, value in answer.items():
        assert np.isfinite(value).all(), name
        np.testing.assert_allclose(value[[0, 2]], expected[name][[0, 2]], rtol=1e-3, atol=1e-5)
    if answer["status"][1] == tfdeq.Status.NON_FINITE and not answer["log_probabilities"][1].any():
        for name in before:
            np.testing.assert_array_equal(answer[name][1], huge[name][1])


@pytest.mark.parametrize("name", fast(["span"], ["span", "transformer"]))
def test_more_places_than_there_are(served, name):
    texts = np.repeat(TEXT[:1, :LENGTH], 5, axis=0)
    before = memory_in(served(name)(texts[:, :3], [3] * 5))
    before["memory_length"][1:] = -1, 4, 2**31 - 1, 3
    answer = served(name)(texts, [10] * 5, before)
    assert (answer["status"] == [0, INVALID, INVALID, INVALID, 0]).all()
    for leaf, value in before.items():
        np.testing.assert_array_equal(answer[leaf][1:4], value[1:4])


@pytest.mark.parametrize(
    ("batch", "width"), fast([(0, 5), (2, LENGTH + 1)], [(0, 5), (2, 0), (2, 1), (2, LENGTH + 1)])
)
def test_shapes_at_the_border(any_served, batch, width):
    shape = (batch, width)
    answer = any_served(np.zeros(shape), np.full(batch, width))
    assert answer["log_probabilities"].shape == (batch, VOCABULARY)
    assert answer["log_likelihood"].shape == shape
    assert ((answer["status"] != INVALID) == (1 <= width <= LENGTH)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["span", "trellis", "lstm"])
def test_compiled(served, name):
    compiled = Served(served(name).model, jit_compile=True)
    calls = np.int32([[5, 2], [2, 5]])
    expected, last = converse(served(name), TEXT[:2, :7], calls)
    found, answer = converse(compiled, TEXT[:2, :7], calls)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    for memory, value in memory_in(last).items():
        np.testing.assert_allclose(answer[memory], value, atol=1e-4, err_msg=memory)


@pytest.mark.parametrize(
    "make",
    [
        lambda: trellis(explicit_steps=2),
        pytest.param(lambda: equilibrium(span=4, explicit_steps=2), marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_explicit_applications_carry_the_models_own_memory(make):
    served = Served(make())
    texts = TEXT[:, : CALLS.sum(axis=0)[0]]
    found, last = converse(served, texts, CALLS)
    assert (last["steps"] == 2).all()
    for row, text in enumerate(texts):
        memory, expected = served.model.initial_memory(1), []
        for segment in np.split(text, np.cumsum(CALLS[:, row])[:-1]):
            logits, memory = served.model(segment[None], memory=memory)
            expected.append(tf.nn.log_softmax(logits)[0].numpy())
        expected = np.concatenate(expected)[np.arange(len(text) - 1), text[1:]]
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


@pytest.mark.parametrize("dtype", fast(["mixed_bfloat16"], ["mixed_bfloat16", "float64"]))
@pytest.mark.slow
def test_half_precision_is_served_as_float32(dtype):
    served = Served(equilibrium(span=4, dtype=dtype, solver=tfdeq.Anderson(20, 1e-2)))
    answer = served(TEXT[:, :5], [5, 3, 1])
    expected = "float64" if dtype == "float64" else "float32"
    assert {value.dtype.name for value in memory_in(answer).values()} == {expected, "int32"}
    again = served(TEXT[:, 5:9], [4, 4, 4], memory_in(answer))
    own = tf.nest.map_structure(
        lambda leaf: leaf[:1], model_memory(served.model, memory_in(answer))
    )
    logits, _ = served.model(TEXT[:1, 5:9], memory=own)
    # bfloat16 has eight bits.
    atol = 1e-5 if dtype == "float64" else 0.05
    expected = tf.nn.log_softmax(logits)[0, -1]
    np.testing.assert_allclose(again["log_probabilities"][0], expected, atol=atol)
