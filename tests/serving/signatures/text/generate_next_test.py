"""`generate_first` and `generate_next` together give exactly the text of `generate`."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import contracting_language_model, fast
from tests.support.memory_cases import equilibrium, trellis
from tfdeq.serving.signatures.signature import INVALID, input_specs, solving_of
from tfdeq.serving.signatures.text import get
from tfdeq.serving.signatures.text.generate import greedy

FUNCTIONS_ARE_KEPT = True  # see tests/conftest.py
VOCABULARY, LENGTH = 17, 12
NAMES = ("generate", "generate_first", "generate_next")
TEXT = np.random.default_rng(5).integers(0, VOCABULARY, (3, 6)).astype(np.int32)
SAMPLING = {
    **greedy(3, 5),
    "temperature": np.float32([0, 1, 2]),
    "seed": np.int32([0, 1, 2]),
    "top_k": np.int32([0, 0, 6]),
}


def functions_of(model):
    return {name: get(name).traced(model, solving_of(model)).function for name in NAMES}


@pytest.fixture(scope="module")
def functions():
    model = contracting_language_model(VOCABULARY, LENGTH, tfdeq.Anderson(40, 1e-3))
    return functions_of(model)


def call(function, tokens, lengths, **further):
    given = {
        "tokens": tokens,
        "lengths": lengths,
        "tolerance": np.zeros(len(lengths)),
        "max_steps": np.zeros(len(lengths)),
        **further,
    }
    inputs = {
        spec.name: tf.constant(given[spec.name], spec.dtype)
        for spec in input_specs(function).values()
    }
    return {name: value.numpy() for name, value in function(**inputs).items()}


def state_in(answer):
    return {name: value for name, value in answer.items() if name.startswith("state_")}


@pytest.mark.parametrize(
    ("make", "names"),
    fast(
        [(None, ["equilibrium", "past_key", "past_value"])],
        [
            (None, ["equilibrium", "past_key", "past_value"]),
            (trellis, ["equilibrium", "past_c", "past_h", "past_input"]),
            (
                lambda: equilibrium(dtype="mixed_bfloat16", solver=tfdeq.Anderson(20, 1e-2)),
                ["equilibrium", "past_key", "past_value"],
            ),
        ],
    ),
)
def test_the_text_of_generate(functions, make, names):
    """Every number of the carried state is a float32, and that is exact for half precision too."""
    if make is not None:
        functions = functions_of(make())
    tokens, lengths = TEXT % 17, np.int32([4, 2, 3])
    whole = call(functions["generate"], tokens, lengths, **SAMPLING)
    segment = np.int32([1, 2, 3])
    answer = call(functions["generate_first"], tokens, lengths, **SAMPLING, segment_tokens=segment)
    assert [name.removeprefix("state_") for name in sorted(state_in(answer))] == names
    assert all(value.dtype == np.float32 for value in state_in(answer).values())
    texts = [list(row[:length]) for row, length in zip(tokens, lengths, strict=True)]
    new, steps = [[], [], []], np.zeros(3, int)
    finish, residual = np.full(3, 3), np.zeros(3, np.float32)
    while True:
        for row in np.flatnonzero(finish == 3):
            added = answer["tokens"][row, : answer["lengths"][row]].tolist()
            assert len(added) <= segment[row]
            new[row] += added
            texts[row] += added
            steps[row] += answer["steps"][row]
            residual[row] = max(residual[row], answer["residual"][row])
            finish[row] = answer["finish"][row]
        if not (finish == 3).any():
            break
        padded = [text + [-7] * (LENGTH - len(text)) for text in texts]
        answer = call(
            functions["generate_next"],
            padded,
            [len(text) for text in texts],
            **{**SAMPLING, **state_in(answer)},
            segment_tokens=segment,
            drawn=[len(added) for added in new],
        )
    for row, added in enumerate(new):
        assert added == whole["tokens"][row, : whole["lengths"][row]].tolist()
    np.testing.assert_array_equal(finish, whole["finish"])
    np.testing.assert_array_equal(steps, whole["steps"])
    np.testing.assert_array_equal(residual, whole["residual"])


def test_what_cannot_be_answered_keeps_its_state_and_harms_no_other(functions):
    tokens = np.repeat(TEXT[:1], 6, axis=0)
    sampling = {**greedy(6, 5), "segment_tokens": np.full(6, 2)}
    before = state_in(call(functions["generate_first"], tokens[:, :4], [4] * 6, **sampling))
    given = {**sampling, **{name: value.copy() for name, value in before.items()}}
    given["drawn"] = np.int32([2, -1, 6, 2, 2, 2])
    given["state_past_key"][3, 0, 0, 0] = np.nan
    given["state_equilibrium"][4] = np.inf
    found = call(functions["generate_next"], tokens, [6] * 6, **given)
    bad = [1, 2, 3, 4]
    assert (found["status"][bad] == INVALID).all()
    assert (found["finish"][bad] == INVALID).all()
    assert (found["tokens"][bad] == -1).all()
    assert not found["steps"][bad].any()
    assert not found["lengths"][bad].any()
    for name, value in before.items():
        np.testing.assert_array_equal(found[name][[1, 2]], value[[1, 2]])
        assert not found[name][[3, 4]].any()
    own = {name: value[:1] for name, value in given.items()}
    alone = call(functions["generate_next"], tokens[:1], [6], **own)
    assert alone["lengths"][0] == 2
    for row in (0, 5):
        np.testing.assert_array_equal(found["tokens"][row], alone["tokens"][0])
        assert found["steps"][row] == alone["steps"][0]


def test_a_state_that_overflows_is_finite_and_harms_no_other(functions):
    tokens = np.repeat(TEXT[:1], 2, axis=0)
    sampling = {**greedy(2, 5), "segment_tokens": np.full(2, 2)}
    before = state_in(call(functions["generate_first"], tokens[:, :4], [4] * 2, **sampling))
    given = {**sampling, **before, "drawn": np.int32([2, 2])}
    expected = call(functions["generate_next"], tokens, [6] * 2, **given)
    for name in before:
        given[name] = before[name].copy()
        given[name][1] = 3e38
    found = call(functions["generate_next"], tokens, [6] * 2, **given)
    assert all(np.isfinite(value).all() for value in found.values())
    np.testing.assert_array_equal(found["tokens"][0], expected["tokens"][0])
