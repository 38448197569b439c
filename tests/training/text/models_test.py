"""Tests of tfdeq.training.text.models."""

import math
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from tests.support.cases import contracting_language_model, fast
from tfdeq import FixedPointIteration, baselines
from tfdeq.cells import TransformerCell, TrellisCell
from tfdeq.data import TokenData
from tfdeq.models import ExplicitLanguageModel, LanguageModel
from tfdeq.training.task import CallSettings
from tfdeq.training.text import language_model
from tfdeq.training.text.model_flags import BASELINES, CELLS
from tfdeq.training.text.models import (
    continued,
    make_loss,
    make_model,
    radius_of,
    token_loss,
)
from trainers.language_model import CONFIGURATION_FLAGS

NETWORKS = {
    "transformer": baselines.TransformerStack,
    "lstm": baselines.Recurrent,
    "gru": baselines.Recurrent,
    "tcn": baselines.TemporalConvolution,
    "trellisnet": baselines.TrellisNetwork,
}
# Values of --model and --cell.
KINDS = [*(("deq", cell) for cell in CELLS), *((name, "transformer") for name in BASELINES)]


def configuration(**changes):
    """Returns the flags' defaults at a small size, with changes."""
    defaults = {name: flags.FLAGS[name].default for name in CONFIGURATION_FLAGS}
    small = {"width": 8, "heads": 2, "feedforward": 12, "sequence_length": 6, "batch_size": 4}
    unknown = {*small, *changes} - {*defaults}
    assert not unknown
    return {**defaults, **small, **changes}


def make(model, cell="transformer", vocabulary_size=9, **changes):
    keras.utils.set_random_seed(0)
    depth = {"depth": 0 if model == "deq" else 2}
    return make_model(
        configuration(model=model, cell=cell, **{**depth, **changes}), vocabulary_size
    )


def batch(rows=3, length=6, seed=0):
    random = np.random.default_rng(seed)
    tokens, targets = (tf.constant(random.integers(0, 9, (rows, length)), tf.int32) for _ in "ab")
    return tokens, targets


# --- models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "cell"), KINDS)
def test_every_model_and_cell(model, cell):
    made = make(model, cell, attention_span=4)
    assert made.built
    if model == "deq":
        assert isinstance(made, LanguageModel)
        kind = {"transformer": TransformerCell, "trellis": TrellisCell}[cell]
        assert isinstance(made.cell, kind)
        assert made.equilibrium.solver == FixedPointIteration(8, 1e-3)
    else:
        assert isinstance(made, ExplicitLanguageModel)
        assert isinstance(made.network, NETWORKS[model])
        assert made.network.depth == 2
        if model in ("lstm", "gru"):
            assert made.network.get_config()["kind"] == model
    assert made.remembers
    assert (made.width, made.state_width, made.vocabulary_size) == (8, 8, 9)
    tokens, _ = batch()
    logits, memory = made(tokens, memory=made.initial_memory(3))
    assert logits.shape == (3, 6, 9)
    assert made(tokens, memory=memory)[0].shape == (3, 6, 9)


@pytest.mark.parametrize(("model", "cell"), KINDS)
def test_flags_that_all_models_have(model, cell):
    # A transformer adds to its input, so its width is that of the embedding.
    narrow = (model, cell) != ("deq", "transformer") and model != "transformer"
    made = make(
        model,
        cell,
        vocabulary_size=20,
        cutoffs=["4", "8"],
        cutoff_factor=2,
        tied_output=True,
        input_dropout=0.1,
        output_dropout=0.2,
        dropout=0.3,
        embedding_width=4 if narrow else 0,
        precision="mixed_bfloat16",
    )
    assert made.cutoffs == (4, 8)
    assert made.readout.tied_to is made.embedding
    assert (made.input_dropout.rate, made.output_dropout.rate) == (0.1, 0.2)
    part = made.cell if model == "deq" else made.network
    assert part.dropout == 0.3
    assert (made.width, made.state_width) == (4 if narrow else 8, 8)
    assert made.dtype_policy.name == part.dtype_policy.name == "mixed_bfloat16"


def test_flags_of_the_transformer_cell():
    made = make("deq", attention_span=3, norm="post", distance_slope=0.5, locked_dropout=True)
    assert not made.cell.query_key_norm
    assert make("deq", query_key_norm=True).cell.query_key_norm
    config = made.cell.get_config()
    assert [config[name] for name in ("span", "norm", "distance_slope", "locked_dropout")] == [
        3,
        "post",
        0.5,
        True,
    ]
    assert [config[name] for name in ("heads", "feedforward", "sequence_length")] == [2, 12, 6]
    assert make("deq").cell.span is None
    assert make("transformer", attention_span=3).network.get_config()["span"] == 3


@pytest.mark.parametrize(
    ("model", "cell"), [("deq", "trellis"), ("trellisnet", "trellis"), ("tcn", "trellis")]
)
def test_flags_of_convolutions(model, cell):
    made = make(model, cell, kernel_size=3, weight_dropout=0.4)
    part = made.cell if model == "deq" else made.network
    config = part.get_config()
    assert config["kernel_size"] == 3
    assert config.get("weight_dropout", 0.4) == 0.4


@pytest.mark.parametrize("model", ["deq", "transformer"])
def test_memory_wants_a_span(model):
    """The error is raised before anything is trained."""
    config = configuration(model=model, depth=2 if model != "deq" else 0, carry_memory=True)
    data = types.SimpleNamespace(vocabulary_size=9)
    with pytest.raises(
        ValueError, match=rf"--model={model} --attention_span=0\. For a transformer"
    ):
        language_model.make_experiment(config, data)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adjoint": "shine"}, "--adjoint=shine wants --solver=broyden; received --solver=fixed"),
        ({"adjoint": "reversible_backprop"}, "wants --solver=reversible; received"),
        (
            {"adjoint": "unrolled", "correction_steps": ["2"]},
            "wants --adjoint=implicit or jacobian_free or phantom_gradient; received --adjoint=unrolled",
        ),
        (
            {"embedding_width": 4},
            "--embedding_width must be 0 or equal to --width; received 4 and 8",
        ),
    ],
)
def test_flags_that_do_not_go_together(changes, said):
    with pytest.raises(ValueError, match=said):
        make("deq", **changes)
    if "adjoint" in changes:  # explicit applications need no adjoint
        make("deq", depth=2, **changes)


# --- losses -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return contracting_language_model(vocabulary_size=9, length=6)


def test_the_loss_is_the_mean_negative_log_likelihood(model):
    tokens = tf.constant(np.random.default_rng(0).integers(0, 9, (3, 6)), tf.int32)
    targets = tf.constant(np.random.default_rng(1).integers(0, 9, (3, 6)), tf.int32)
    loss = token_loss(model, (tokens, targets), CallSettings(0, tf.constant(20), False)).value
    logits = model(tokens, max_steps=20).numpy()
    likelihood = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = [-math.log(likelihood[i, t, targets[i, t]]) for i in range(3) for t in range(6)]
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)
    applied = token_loss(model, (tokens, targets), CallSettings(2, tf.constant(20), False)).value
    assert float(applied) != float(loss)


@pytest.mark.parametrize("explicit_steps", fast([0], [0, 2]))
@pytest.mark.parametrize(
    ("kind", "cell"),
    fast([("deq", "transformer")], [("deq", "transformer"), ("deq", "trellis"), ("lstm", "")]),
)
def test_the_loss_with_a_memory(kind, cell, explicit_steps):
    """Rows that continue have the memory of the previous batch, and rows that begin have none."""
    model = make(kind, cell or "transformer", attention_span=4, recurrent_scale=0.5)
    _, before, _ = token_loss(
        model,
        (*batch(seed=1), tf.fill([3], False)),
        CallSettings(0, 5, False),
        model.initial_memory(3),
    )
    tokens, targets = batch()
    continues = tf.constant([True, False, True])
    settings = CallSettings(explicit_steps, tf.constant(5), False)
    loss, after, _ = token_loss(model, (tokens, targets, continues), settings, before)
    assert loss.shape == ()
    settings = {}
    if kind == "deq":
        settings = {"max_steps": 5, "explicit_steps": explicit_steps}
    losses = []
    for row, goes_on in enumerate(continues):
        one = slice(row, row + 1)
        memory = tf.nest.map_structure(lambda leaf, one=one: leaf[one], before)
        memory = memory if goes_on else model.initial_memory(1)
        nats, left = model(tokens[one], targets=targets[one], memory=memory, **settings)
        losses.append(nats)
        for found, leaf in zip(tf.nest.flatten(after), tf.nest.flatten(left), strict=True):
            np.testing.assert_allclose(found[one], leaf, rtol=1e-4, atol=1e-5)
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)


def test_continued():
    memory = {"count": tf.constant([3, 4]), "state": tf.ones([2, 3, 2])}
    found = continued(memory, tf.constant([False, True]))
    np.testing.assert_array_equal(found["count"], [0, 4])
    np.testing.assert_array_equal(found["state"], [np.zeros([3, 2]), np.ones([3, 2])])
    # Non-finite values are also removed.
    memory = {"state": tf.constant([[np.nan], [1.0]])}
    np.testing.assert_array_equal(
        continued(memory, tf.constant([False, True]))["state"], [[0], [1]]
    )


def test_correction_averages_the_losses_after_evaluations_of_a_training_solve(model):
    tokens, targets = batch()
    loss_of = make_loss(model, {"correction_steps": ["1", "3"], "correction_weight": 0.5})
    found = loss_of((tokens, targets), CallSettings(0, tf.constant(20), True)).value
    parts = [
        token_loss(model, (tokens, targets), CallSettings(0, tf.constant(steps), True)).value
        for steps in (20, 1, 3)
    ]
    expected = (parts[0] + 0.5 * (parts[1] + parts[2])) / 2
    assert float(found) == pytest.approx(float(expected), rel=1e-4)
    for explicit_steps, training in ((0, False), (2, True)):
        arguments = (tokens, targets), CallSettings(explicit_steps, tf.constant(20), training)
        expected = token_loss(model, *arguments).value
        assert float(loss_of(*arguments).value) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.slow
def test_the_radius_is_the_same_each_time_and_below_one_where_it_contracts(model):
    tokens = tf.constant(np.random.default_rng(0).integers(0, 9, (5, 6)), tf.int32)
    radius = radius_of(model, examples=3)
    first, second = radius((tokens, tokens)), radius((tokens, tokens))
    assert first.shape == (3,)
    np.testing.assert_array_equal(first, second)
    assert 0 < float(tf.reduce_max(first)) < 1


@pytest.mark.parametrize("unit", ["byte", "word"])
def test_a_task_knows_the_uniform_guess_and_shows_any_loss(unit):
    tokens = np.zeros(100, "int32")
    data = TokenData(tokens, tokens, tokens, 9, unit, None, "")
    config = configuration(evaluation_windows=4)
    task = language_model.make_experiment(config, data).task
    assert task.uniform_loss == pytest.approx(math.log(9))
    # The exponential is beyond float32 in the first case, and beyond float64 in the second.
    for loss, perplexity in ((100.0, math.exp(100.0)), (800.0, math.inf)):
        shown = task.display({"loss": loss})
        assert shown["loss"] == loss
        assert shown.get("perplexity", perplexity) == pytest.approx(perplexity)
