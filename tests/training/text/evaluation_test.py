import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support.cases import fast
from tfdeq import FixedPointIteration
from tfdeq.baselines import Recurrent
from tfdeq.cells import TransformerCell, TrellisCell
from tfdeq.models import ExplicitLanguageModel, LanguageModel
from tfdeq.training.evaluation import TRACE_STEPS
from tfdeq.training.text.evaluation import (
    figures_of,
    segment_evaluator,
    sequence_evaluator,
    token_evaluator,
)


def make_model(explicit_steps=0):
    keras.utils.set_random_seed(5)
    model = LanguageModel(
        11,
        8,
        TransformerCell(8, 2, 8, recurrent_scale=0.5),
        solver=FixedPointIteration(max_steps=4, tolerance=1e-6),
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


@pytest.mark.slow
def test_an_explicit_model_is_applied_that_often(tokens):
    rows = evaluator(make_model(explicit_steps=2), tokens).by_budget()
    assert [row["steps"] for row in rows.values()] == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.slow
def test_the_trace_holds_each_budget_of_each_example(tokens):
    trace = evaluator(make_model(), tokens).residual_trace(examples=3)
    values = np.array(trace["residual"])
    assert values.shape == (len(TRACE_STEPS), 3)
    assert (np.diff(values, axis=0) <= 1e-6).all()


def test_too_short_a_text_is_an_error():
    with pytest.raises(ValueError, match="Lower the sequence length or give more text"):
        token_evaluator(make_model(), np.zeros(5, "uint8"), "byte")


# --- models with a memory ---------------------------------------------------------------------------


def remembering(kind):
    """Returns a built model whose memory matters; an equilibrium is solved to 1e-6."""
    keras.utils.set_random_seed(5)
    solver = FixedPointIteration(max_steps=80, tolerance=1e-6)
    if kind == "lstm":
        model = ExplicitLanguageModel(11, 8, width=6, network=Recurrent(8))
    elif kind == "trellis":
        cell = TrellisCell(8, recurrent_scale=0.5)
        model = LanguageModel(11, 8, width=6, cell=cell, solver=solver)
    else:
        model = LanguageModel(
            11, 8, TransformerCell(8, 2, 8, recurrent_scale=0.3, span=5), solver=solver
        )
    model.build((None, 8))
    return model


def mean_nats(model, *texts):
    """Returns mean nats over all predictions of texts that are each read in one piece."""
    losses = [model(text[None, :-1], targets=text[None, 1:].astype("int32")) for text in texts]
    return float(tf.reduce_mean(tf.concat(losses, axis=1)))


def by_hand(model, tokens, length=8):
    """Returns mean nats and the number of predictions of each window of a text."""
    parts = []
    for start in range(0, len(tokens) - 1, length):
        text = tokens[start : start + length + 1].astype("int32")
        parts.append((mean_nats(model, text), len(text) - 1))
    return tuple(np.array(column) for column in zip(*parts, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_the_test_predicts_every_token(tokens, batch_size):
    """Including those of the last, shorter window, for any batches."""
    model = remembering("trellis")  # reads windows of any length
    text = tokens[:61]
    found = token_evaluator(model, text, "byte", batch_size=batch_size, jit_compile=False).results()
    nats, weights = by_hand(model, text)
    assert list(weights) == [8] * 7 + [4]
    mean = (weights * nats).sum() / 60
    assert found["bits_per_byte"] == pytest.approx(mean / math.log(2), rel=1e-5)
    assert (found["examples"], found["tokens"]) == (8, 60)
    variance = (weights * (nats - mean) ** 2).sum() / 60 * 8 / 7
    error = math.sqrt(variance / 8) / math.log(2)
    assert found["standard_error"] == pytest.approx(error, rel=1e-4)
    assert found["by_budget"]["1.0"]["bits_per_byte"] == found["bits_per_byte"]


@pytest.mark.parametrize("windows", fast([1, 5], [1, 5, 37]))
@pytest.mark.slow
def test_as_many_windows_as_asked_for(tokens, windows):
    found = token_evaluator(
        make_model(), tokens, "word", windows=windows, batch_size=4, jit_compile=False
    ).results()
    assert found["examples"] == windows
    assert found["tokens"] == 8 * windows
    assert ("standard_error" in found) == (windows > 1)


def test_segments_have_a_standard_error(tokens):
    model, text = remembering("lstm"), tokens[:60]
    found = segment_evaluator(model, text, "word", 7, batch_size=4, jit_compile=False).results()
    # Three rows of 15 predictions and one of 14: two segments each, and one of a single prediction.
    assert (found["examples"], found["tokens"]) == (11, 59)
    assert 0 < found["standard_error"] < 1


@pytest.mark.slow
def test_rows_that_fill_up_do_not_count(tokens):
    """Neither in the mean nor in residual and steps."""
    model = make_model()
    alone = token_evaluator(model, tokens[:41], "byte", batch_size=1, jit_compile=False).results()
    filled = token_evaluator(model, tokens[:41], "byte", batch_size=3, jit_compile=False).results()
    assert filled["examples"] == alone["examples"] == 5
    for name in ("bits_per_byte", "residual", "steps", "standard_error"):
        assert filled[name] == pytest.approx(alone[name], rel=1e-5), name
    trace = token_evaluator(model, tokens[:41], "byte", batch_size=3, jit_compile=False)
    assert np.shape(trace.residual_trace()["residual"]) == (len(TRACE_STEPS), 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "jit_compile"),
    [("transformer", False), ("trellis", True), ("lstm", True)],
)
def test_segments_are_evaluated_as_the_long_text_they_are(kind, jit_compile, tokens):
    model, text = remembering(kind), tokens[:61].astype("int32")
    # 60 predictions: eight segments of 7 and one of 4.
    evaluator = segment_evaluator(model, text, "word", 7, batch_size=1, jit_compile=jit_compile)
    results = evaluator.evaluate()
    # Each segment's solve stops at 1e-6 of its own state's norm.
    assert results["bits_per_word"] * math.log(2) == pytest.approx(mean_nats(model, text), rel=1e-4)
    assert results["perplexity"] == pytest.approx(math.exp(mean_nats(model, text)), rel=1e-4)
    assert evaluator.evaluate() == results  # starts without a memory each time
    cut = token_evaluator(model, text, "word", batch_size=1, windows=7, jit_compile=False)
    assert abs(cut.evaluate()["bits_per_word"] - results["bits_per_word"]) > 1e-3


def test_rows_of_segments_are_texts_of_their_own(tokens):
    """Including the last row, which is shorter; its padding does not count."""
    model, text = remembering("lstm"), tokens[:60].astype("int32")
    evaluator = segment_evaluator(model, text, "byte", 7, batch_size=4, jit_compile=False)
    rows = [text[start : min(start + 15, 59) + 1] for start in (0, 15, 30, 45)]
    assert [len(row) - 1 for row in rows] == [15, 15, 15, 14]
    expected = mean_nats(model, *rows) / math.log(2)
    assert evaluator.evaluate()["bits_per_byte"] == pytest.approx(expected, rel=1e-5)
    # No more rows than there are segments.
    evaluator = segment_evaluator(model, text, "byte", 40, batch_size=4, jit_compile=False)
    expected = mean_nats(model, text) / math.log(2)
    assert evaluator.evaluate()["bits_per_byte"] == pytest.approx(expected, rel=1e-5)


def test_the_mean_is_weighted(tokens):
    model = make_model()
    inputs, targets = tokens[:32].reshape(2, 2, 8), tokens[1:33].reshape(2, 2, 8).astype("int32")
    weights = np.random.default_rng(1).uniform(size=inputs.shape).astype("float32")
    batches = list(zip(inputs, targets, weights, strict=True))
    evaluator = sequence_evaluator(model, batches, dict, jit_compile=False)
    losses = np.stack([model(i, targets=t) for i, t in zip(inputs, targets, strict=True)])
    expected = (weights * losses).sum() / weights.sum()
    assert evaluator.evaluate()["nats"] == pytest.approx(expected, rel=1e-5)
    alone = sequence_evaluator(model, zip(inputs, targets, strict=True), dict, jit_compile=False)
    assert alone.evaluate()["nats"] == pytest.approx(losses.mean(), rel=1e-5)


def test_explicit_networks_have_one_budget_and_no_residual(tokens):
    model = remembering("lstm")
    by_window = token_evaluator(model, tokens, "byte", batch_size=4, windows=8, jit_compile=False)
    for each in (by_window, segment_evaluator(model, tokens, "byte", 8, jit_compile=False)):
        results = each.results()
        names = {"bits_per_byte", "standard_error", "examples", "tokens", "by_budget"}
        assert set(results) == names
        assert results["by_budget"] == {"1.0": {"bits_per_byte": results["bits_per_byte"]}}


@pytest.mark.slow
def test_budgets_of_an_equilibrium_with_a_memory(tokens):
    model = remembering("transformer")
    model.equilibrium.solver = FixedPointIteration(max_steps=4, tolerance=1e-6)
    rows = segment_evaluator(model, tokens, "byte", 8, jit_compile=False).by_budget()
    assert [row["steps"] for row in rows.values()][:3] == [2.0, 4.0, 8.0]
    residuals = [row["residual"] for row in rows.values()]
    assert residuals == sorted(residuals, reverse=True)


def test_a_loss_beyond_what_exp_can_do_is_a_perplexity_too():
    figures = figures_of("word")
    assert figures({"nats": 700.0})["perplexity"] == pytest.approx(math.exp(700.0))
    expected = {"bits_per_word": 800.0 / math.log(2), "perplexity": math.inf}
    assert figures({"nats": 800.0}) == expected
    assert set(figures_of("byte")({"nats": 800.0})) == {"bits_per_byte"}
