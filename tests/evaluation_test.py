import math

import keras
import numpy as np
import pytest

from tfdeq import FixedPointIteration
from tfdeq.models import LanguageModel
from trainers.evaluation import TRACE_STEPS, token_evaluator


def make_model(explicit_steps=0):
    keras.utils.set_random_seed(5)
    model = LanguageModel(
        11,
        8,
        width=8,
        heads=2,
        solver=FixedPointIteration(max_steps=4, tolerance=1e-6),
        recurrent_scale=0.5,
        explicit_steps=explicit_steps,
    )
    model.build((None, 8))
    return model


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, 11, 300).astype("uint8")


def evaluator(model, tokens, unit="byte"):
    return token_evaluator(model, tokens, unit, batch_size=4, windows=16, jit_compile=False)


def test_words_have_a_perplexity(tokens):
    results = evaluator(make_model(), tokens, "word").evaluate()
    assert results["perplexity"] == pytest.approx(2 ** results["bits_per_word"], rel=1e-6)


def test_every_window_counts_once(tokens):
    model = make_model()
    short = tokens[: 4 * 8 + 1]
    results = token_evaluator(
        model, short, "byte", batch_size=4, windows=4, jit_compile=False
    ).evaluate()
    inputs, targets = short[:-1].reshape(4, 8), short[1:].reshape(4, 8)
    logits = keras.ops.log_softmax(model(inputs)).numpy()
    nats = -np.take_along_axis(logits, targets[..., None].astype(int), axis=-1).mean()
    assert results["bits_per_byte"] == pytest.approx(nats / math.log(2), rel=1e-5)


def test_the_budget_scales_the_steps(tokens):
    by_budget = evaluator(make_model(), tokens).by_budget()
    # At four times the budget some examples reach the tolerance before it ends.
    assert [row["steps"] for row in by_budget.values()][:3] == [2.0, 4.0, 8.0]
    residuals = [row["residual"] for row in by_budget.values()]
    assert residuals == sorted(residuals, reverse=True)


def test_an_explicit_model_is_applied_that_often(tokens):
    rows = evaluator(make_model(explicit_steps=2), tokens).by_budget()
    assert [row["steps"] for row in rows.values()] == [1.0, 2.0, 4.0, 8.0]


def test_the_trace_holds_each_budget_of_each_example(tokens):
    trace = evaluator(make_model(), tokens).residual_trace(examples=3)
    values = np.array(trace["residual"])
    assert values.shape == (len(TRACE_STEPS), 3)
    assert (np.diff(values, axis=0) <= 1e-6).all()


def test_too_short_a_text_is_an_error():
    with pytest.raises(ValueError, match="Lower the sequence length or give more text"):
        token_evaluator(make_model(), np.zeros(5, "uint8"), "byte")
