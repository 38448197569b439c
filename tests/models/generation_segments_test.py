"""Segments give exactly the tokens of `generate`, whatever their sizes, neighbours and cell."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import contracting_language_model, fast
from tests.support.memory_cases import equilibrium, trellis
from tfdeq.models import generate
from tfdeq.models.generation import GOES_ON, MAX_NEW_TOKENS, SEQUENCE_LENGTH
from tfdeq.models.generation_segments import Paused, empty_paused, generate_segment

FUNCTIONS_ARE_KEPT = True  # see tests/conftest.py
VOCABULARY, LENGTH = 13, 20
SETTINGS = {
    "max_new_tokens": np.int32([0, 9, 30, 1]),
    "temperature": np.float32([0.0, 1.0, 3.0, 2.0]),
    "top_k": np.int32([0, 0, 5, 0]),
    "top_p": np.float32([0.0, 0.9, 0.0, 0.0]),
    "stop_token": np.int32([-1, -1, 4, -1]),
    "seed": np.int32([0, 1, 2, 3]),
    "tolerance": np.float32([0.0, 1e-2, 1e-4, 0.0]),
    "max_steps": np.int32([0, 0, 7, 0]),
}
PROMPTS = np.random.default_rng(5).integers(0, VOCABULARY, (4, 9)).astype(np.int32)
LENGTHS = np.int32([9, 1, 4, 7])


def language_model():
    model = contracting_language_model(
        VOCABULARY, LENGTH, tfdeq.Anderson(max_steps=60, tolerance=1e-5)
    )
    # Larger logits, so that no two tokens are equally likely.
    model.readout.kernel.assign(5.0 * model.readout.kernel)
    return model


def in_segments(model, prompts, lengths, sizes, settings, compiled=False):
    """Returns the new tokens of each text, its finish, and sums and maxima over the calls."""

    def first(tokens, lengths, segment_tokens, settings):
        return generate_segment(model, tokens, lengths, segment_tokens=segment_tokens, **settings)

    def later(tokens, lengths, segment_tokens, settings, paused, drawn):
        return generate_segment(
            model, tokens, lengths, segment_tokens=segment_tokens, paused=paused, drawn=drawn,
            **settings,
        )  # fmt: skip

    first, later = (
        tf.function(each, autograph=False, jit_compile=compiled, reduce_retracing=True)
        for each in (first, later)
    )
    batch = len(lengths)
    texts = [list(row[:length]) for row, length in zip(prompts, lengths, strict=True)]
    drawn, finish = np.zeros(batch, np.int32), np.full(batch, GOES_ON)
    steps, residual, paused, calls = np.zeros(batch, int), np.zeros(batch, np.float32), None, 0
    while (finish == GOES_ON).any():
        size = np.broadcast_to(np.int32(sizes[min(calls, len(sizes) - 1)]), [batch])
        longest = max(map(len, texts))
        tokens = tf.constant([text + [-7] * (longest - len(text)) for text in texts], tf.int32)
        counts = tf.constant([len(text) for text in texts])
        if paused is None:
            found, paused = first(tokens, counts, size, settings)
        else:
            found, paused = later(tokens, counts, size, settings, paused, tf.constant(drawn))
        going = finish == GOES_ON
        # A text that has ended may get further tokens, which nobody asked for.
        for row in np.flatnonzero(going):
            new = found.tokens[row, : found.lengths[row]].numpy()
            assert len(new) <= size[row]
            assert (found.tokens[row, len(new) :].numpy() == -1).all()
            texts[row] += new.tolist()
        drawn += np.where(going, found.lengths, 0).astype(np.int32)
        steps += np.where(going, found.steps, 0)
        residual = np.where(going, np.maximum(residual, found.residual), residual)
        finish = np.where(going, found.finish, finish)
        calls += 1
    new = [text[length:] for text, length in zip(texts, lengths, strict=True)]
    return new, finish, steps, residual, calls


def in_one_call(model, prompts, lengths, settings, compiled=False):
    call = tf.function(
        lambda tokens, lengths, settings: generate(model, tokens, lengths, **settings),
        autograph=False,
        jit_compile=compiled,
    )
    return call(tf.constant(prompts), tf.constant(lengths), settings)


@pytest.fixture(scope="module")
def model():
    return language_model()


@pytest.mark.slow  # text/generate_next_test.py has it for the served functions
@pytest.mark.parametrize("sizes", fast([[1, 3]], [[1], [1, 3], [5], [(1, 2, 3, 4), (4, 1, 2, 3)]]))
def test_all_segments_together_are_the_text(model, sizes):
    whole = in_one_call(model, PROMPTS, LENGTHS, SETTINGS)
    new, finish, steps, residual, calls = in_segments(model, PROMPTS, LENGTHS, sizes, SETTINGS)
    for row, count in enumerate(whole.lengths.numpy()):
        assert new[row] == whole.tokens[row, :count].numpy().tolist()
    np.testing.assert_array_equal(finish, whole.finish)
    np.testing.assert_array_equal(steps, whole.steps)
    np.testing.assert_array_equal(residual, whole.residual)
    assert calls > 1
    assert set(finish) == {SEQUENCE_LENGTH, MAX_NEW_TOKENS} or set(finish) == {0, 1, 2}


@pytest.mark.parametrize(
    "make",
    fast(
        [trellis],
        [trellis, lambda: equilibrium(span=4), lambda: equilibrium(dtype="mixed_bfloat16")],
    ),
)
@pytest.mark.slow
def test_other_cells_and_dtypes(make):
    model = make()
    prompts, lengths = PROMPTS[:2, :4], np.int32([4, 2])
    settings = {"temperature": np.float32([0.0, 1.0]), "tolerance": np.float32([1e-2, 1e-3])}
    whole = in_one_call(model, prompts, lengths, settings)
    sizes = [np.int32([1, 2]), np.int32([2, 1])]
    new, finish, steps, _, _ = in_segments(model, prompts, lengths, sizes, settings)
    for row, count in enumerate(whole.lengths.numpy()):
        assert new[row] == whole.tokens[row, :count].numpy().tolist()
    np.testing.assert_array_equal(finish, whole.finish)
    np.testing.assert_array_equal(steps, whole.steps)


@pytest.mark.slow
def test_compiled(model):
    whole = in_one_call(model, PROMPTS, LENGTHS, SETTINGS, compiled=True)
    new, finish, *_ = in_segments(model, PROMPTS, LENGTHS, [1, 4], SETTINGS, compiled=True)
    for row, count in enumerate(whole.lengths.numpy()):
        assert new[row] == whole.tokens[row, :count].numpy().tolist()
    np.testing.assert_array_equal(finish, whole.finish)


@pytest.mark.parametrize("make", [language_model, pytest.param(trellis, marks=pytest.mark.slow)])
def test_the_empty_state_has_the_form_of_those_returned(make):
    model = make()
    _, paused = generate_segment(model, PROMPTS[:2], segment_tokens=1)
    empty = empty_paused(model, 2)
    assert isinstance(empty, Paused)
    tf.nest.assert_same_structure(empty, paused)
    for one, other in zip(tf.nest.flatten(empty), tf.nest.flatten(paused), strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype


def test_nothing_is_added_where_there_is_no_room(model):
    full = np.zeros([3, LENGTH], np.int32)
    found, _ = generate_segment(
        model,
        full,
        np.int32([LENGTH, 7, LENGTH - 1]),
        paused=empty_paused(model, 3),
        drawn=np.int32([3, 5, 3]),
        max_new_tokens=5,
        segment_tokens=4,
    )
    assert found.lengths.numpy().tolist() == [0, 0, 1]
    assert found.finish.numpy().tolist() == [SEQUENCE_LENGTH, MAX_NEW_TOKENS, SEQUENCE_LENGTH]
    assert found.steps.numpy()[:2].tolist() == [0, 0]
    assert (found.tokens[:2].numpy() == -1).all()


def test_models_that_cannot_generate():
    with pytest.raises(ValueError, match="explicit_steps=2"):
        generate_segment(trellis(explicit_steps=2), [[1]])
