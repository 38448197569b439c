"""Tests of tfdeq.models.language_model: long texts in segments, with a carried memory."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import fast, in_mode
from tests.support.memory_cases import training_step
from tfdeq.cells import TransformerCell, TrellisCell
from tfdeq.models import LanguageModel

# Texts here are longer than sequence_length, which has no effect with a memory.
VOCABULARY, LENGTH, WIDTH, SPAN = 11, 5, 8, 4
SEGMENTS = (4, 1, 7, 2)
TEXT = sum(SEGMENTS)
SOLVER = tfdeq.FixedPointIteration(max_steps=100, tolerance=1e-6)
KINDS = ("transformer", "trellis")
every_kind = pytest.mark.parametrize("kind", KINDS)
# For behaviour that does not depend on the cell; test_segments_are_one_long_text tests both.
one_kind = pytest.mark.parametrize("kind", fast(["transformer"], KINDS))


def _model(kind, seed=0, **settings):
    keras.utils.set_random_seed(seed)
    dtype = settings.get("dtype")
    if kind == "trellis":
        cell = TrellisCell(WIDTH, 3, recurrent_scale=0.7, dtype=dtype, name="cell")
        settings = {"width": 6, "cell": cell, **settings}
    else:
        own = {name: settings.pop(name) for name in ("span", "dropout") if name in settings}
        own = {"recurrent_scale": 0.3, "span": SPAN, "dtype": dtype, **own}
        cell = TransformerCell(WIDTH, 2, LENGTH, **own)
        settings = {"cell": cell, **settings}
    model = LanguageModel(VOCABULARY, LENGTH, **{"solver": SOLVER, **settings})
    model.build((None, LENGTH))
    return model


def _tokens(batch=3, length=TEXT, seed=0):
    tokens = np.random.default_rng(seed).integers(0, VOCABULARY, size=(batch, length))
    return tf.constant(tokens, tf.int32)


def _call(model, **settings):
    """Returns (tokens, memory) -> the model's results, in one graph for segments of any length."""
    memory = tf.nest.map_structure(
        lambda leaf: tf.TensorSpec([None, *leaf.shape[1:]], leaf.dtype), model.initial_memory(1)
    )
    return tf.function(
        lambda tokens, memory: model(tokens, memory=memory, return_solution=True, **settings),
        autograph=False,
        input_signature=[tf.TensorSpec([None, None], tf.int32), memory],
    )


@functools.cache
def _usual(kind):
    """Returns the model, its call on a segment and its call on a whole text; do not change them."""
    model = _model(kind)
    text = tf.TensorSpec([None, None], tf.int32)
    whole = tf.function(
        lambda tokens: model(tokens, return_solution=True), autograph=False, input_signature=[text]
    )
    return model, _call(model), whole


def _in_segments(model, call, tokens, lengths=SEGMENTS):
    """Returns the joined logits [B, T, V] of the pieces, and the memory after the last one."""
    memory, parts = model.initial_memory(tokens.shape[0]), []
    for piece in tf.split(tokens, lengths, axis=1):
        logits, _, memory = call(piece, memory)
        parts.append(logits)
    return tf.concat(parts, axis=1), memory


def _memory(kind):
    """Returns the memory after another text of three rows."""
    model, call, _ = _usual(kind)
    return call(_tokens(seed=2), model.initial_memory(3))[2]


def _assert_close(one, other, **tolerance):
    tf.nest.map_structure(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


def _perplexity(logits, tokens):
    nats = tf.nn.sparse_softmax_cross_entropy_with_logits(tokens[:, 1:], logits[:, :-1])
    return float(tf.exp(tf.reduce_mean(nats)))


@one_kind
def test_segments_are_one_long_text(kind):
    (model, call, in_one_piece), tokens = _usual(kind), _tokens()
    whole, solution = in_one_piece(tokens)
    assert solution.converged.numpy().all()
    logits, memory = _in_segments(model, call, tokens)
    # The solves stop at 1e-6 of the norm of all positions together.
    np.testing.assert_allclose(logits, whole, atol=1e-4)
    assert _perplexity(logits, tokens) == pytest.approx(_perplexity(whole, tokens), rel=1e-3)
    # The earlier text matters.
    alone, _ = in_one_piece(tokens[:, -SEGMENTS[-1] :])
    assert np.abs(logits[:, -SEGMENTS[-1] :] - alone).max() > 1e-2
    # In one piece with a memory, the result is the same memory.
    _, at_once = _in_segments(model, call, tokens, [tokens.shape[1]])
    _assert_close(memory, at_once, atol=1e-4)


@one_kind
def test_memory_is_of_one_shape_and_begins_as_zeros(kind):
    (model, call, in_one_piece), tokens = _usual(kind), _tokens()
    assert model.remembers
    fresh = model.initial_memory(3)
    assert all((leaf.numpy() == 0).all() for leaf in tf.nest.flatten(fresh))
    logits, _, memory = call(tokens, fresh)
    np.testing.assert_allclose(logits, in_one_piece(tokens)[0], atol=1e-5)
    for one, other in zip(tf.nest.flatten(fresh), tf.nest.flatten(memory), strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
    tf.nest.assert_same_structure(fresh, memory)


def test_what_is_returned_in_which_order():
    model, tokens = _model("transformer", explicit_steps=1), _tokens(length=3)
    memory = model.initial_memory(3)
    logits = model(tokens)
    assert logits.shape == (3, 3, VOCABULARY)
    pair = model(tokens, return_solution=True)
    assert isinstance(pair[1], tfdeq.Solution)
    pair = model(tokens, memory=memory)
    assert len(pair) == 2
    assert pair[1].keys() == {"key", "value", "length"}
    triple = model(tokens, targets=tokens, memory=memory, return_solution=True)
    assert [type(one) for one in triple[1:]] == [tfdeq.Solution, dict]
    assert triple[0].shape == (3, 3)
    np.testing.assert_allclose(pair[0], logits, atol=1e-5)


@every_kind
def test_symbolic_call_knows_its_outputs(kind):
    model = _model(kind)
    memory = keras.tree.map_structure(
        lambda leaf: keras.Input(leaf.shape[1:], dtype=leaf.dtype.name), model.initial_memory(1)
    )
    tokens = keras.Input((LENGTH,), dtype="int32")
    logits, solution, after = model(tokens, memory=memory, return_solution=True)
    assert logits.shape == (None, LENGTH, VOCABULARY)
    assert solution.z.shape == (None, LENGTH, WIDTH)
    losses, also = model(tokens, targets=tokens, memory=memory)
    assert losses.shape == (None, LENGTH)
    for found in (after, also):
        keras.tree.assert_same_structure(found, memory)
        for one, other in zip(keras.tree.flatten(found), keras.tree.flatten(memory), strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)


@one_kind
def test_memory_carries_no_gradient(kind):
    model, tokens = _model(kind, explicit_steps=2), _tokens(length=3)
    _, before = model(_tokens(length=4, seed=1), memory=model.initial_memory(3))
    floats = [leaf for leaf in tf.nest.flatten(before) if leaf.dtype.is_floating]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(floats)
        logits, after = model(tokens, memory=before, training=True)
        left = [leaf for leaf in tf.nest.flatten(after) if leaf.dtype.is_floating]
    weights = [variable.value for variable in model.trainable_variables]
    assert tape.gradient(logits, floats) == [None] * len(floats)
    assert tape.gradient(left, [*weights, *floats]) == [None] * (len(weights) + len(floats))
    assert all(gradient is not None for gradient in tape.gradient(logits, weights))


@one_kind
def test_losses_are_those_of_the_logits(kind):
    model, tokens, targets = _model(kind, cutoffs=(4,), cutoff_factor=2), _tokens(), _tokens(seed=1)
    memory = _memory(kind)
    log_p, memory_after = model(tokens, memory=memory, explicit_steps=2)
    losses, also = model(tokens, targets=targets, memory=memory, explicit_steps=2)
    expected = -tf.gather(log_p, targets, axis=-1, batch_dims=2)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
    _assert_close(also, memory_after, atol=1e-6)


@pytest.mark.slow
def test_xla_does_as_a_graph_does():
    """The forward and backward pass of a training step, with a memory that is not empty."""
    model = _model("transformer", solver=tfdeq.FixedPointIteration(100, 1e-7))
    tokens, memory = _tokens(), _memory("transformer")
    step = training_step(model)
    expected, actual = (in_mode(step, mode)(tokens, memory) for mode in ("graph", "xla"))
    # float32, and solves that stop at 1e-7, close to the last bit of sums over all positions.
    _assert_close(actual, expected, rtol=1e-3, atol=1e-5)
    assert all(np.abs(gradient).max() > 0 for gradient in actual[2])


@one_kind
def test_explicit_steps_see_the_memory(kind):
    (model, call, _), tokens = _usual(kind), _tokens(length=3)
    memory = _memory(kind)
    for training in (False, True):
        logits, after = model(tokens, memory=memory, explicit_steps=2, training=training)
        x = {"input": model.embed(tokens), "past": memory}
        injected = model.cell.inject(x)
        z = model.cell.initial_state(x)
        for _ in range(2):
            z = model.cell(z, injected)
        np.testing.assert_allclose(logits, model.logits(z), rtol=1e-5, atol=1e-6)
        _assert_close(after, model.cell.remember(z, injected), rtol=1e-5, atol=1e-6)
    # Many applications are the equilibrium.
    expected = call(tokens, memory)
    logits, after = model(tokens, memory=memory, explicit_steps=40)
    np.testing.assert_allclose(logits, expected[0], atol=1e-4)
    _assert_close(after, expected[2], atol=1e-4)


@pytest.mark.slow
@one_kind
def test_padding_behind_a_segment_changes_no_answer(kind):
    (model, call, _), tokens, memory = _usual(kind), _tokens(), _memory(kind)
    mask = tf.sequence_mask([14, 9, 1], 14)
    padded, solution, after = _call(model, mask=mask)(tokens, memory)
    exact, _, _ = call(tokens, memory)
    for row, length in enumerate((14, 9, 1)):
        np.testing.assert_allclose(padded[row, :length], exact[row, :length], atol=1e-4)
        np.testing.assert_array_equal(solution.z[row, length:], np.zeros([14 - length, WIDTH]))
        # The memory ends with the row's own last token.
        one = slice(row, row + 1)
        before = tf.nest.map_structure(lambda leaf, one=one: leaf[one], memory)
        _, _, expected = call(tokens[one, :length], before)
        _assert_close(
            tf.nest.map_structure(lambda leaf, one=one: leaf[one], after), expected, atol=1e-4
        )


@pytest.mark.slow
def test_trains_with_memory_dropout_and_penalty():
    model = _model(
        "transformer",
        dropout=0.05,
        input_dropout=0.05,
        jacobian_penalty=0.1,
        jacobian_penalty_fraction=0.5,
        solver=tfdeq.FixedPointIteration(8, 1e-3),
    )
    optimizer = keras.optimizers.Adam(0.02)
    optimizer.build(model.trainable_variables)
    text = tf.reshape(tf.tile(_tokens(batch=2, length=13), [1, 2]), [2, 2, 13])

    @tf.function(autograph=False)
    def step(tokens, targets, memory):
        with tf.GradientTape() as tape:
            losses, memory = model(tokens, targets=targets, memory=memory, training=True)
            loss = tf.reduce_mean(losses)
            total = loss + tf.add_n(model.losses)
        optimizer.apply(tape.gradient(total, model.trainable_variables))
        return loss, memory

    losses, memory = [], model.initial_memory(2)
    for index in range(40):
        segment = text[:, index % 2]
        loss, memory = step(segment[:, :-1], segment[:, 1:], memory)
        losses.append(float(loss))
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])


@pytest.mark.parametrize(
    ("kind", "settings"),
    fast(
        [("trellis", {})],
        [
            ("transformer", {"cutoffs": (4,), "tied_output": True, "output_dropout": 0.1}),
            ("trellis", {}),
            ("trellis", {"cutoffs": (4,), "tied_output": True, "cutoff_factor": 2}),
        ],
    ),
)
def test_saving(kind, settings, tmp_path):
    model, tokens = _model(kind, explicit_steps=3, **settings), _tokens()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    assert type(loaded.cell) is type(model.cell)
    memory = model.initial_memory(3)
    for _ in range(2):
        expected, actual = (one(tokens, memory=memory) for one in (model, loaded))
        _assert_close(actual, expected, rtol=1e-6, atol=1e-6)
        memory = expected[1]
    if "cutoffs" in settings:
        assert loaded.readout.tied_to is loaded.embedding


@one_kind
@pytest.mark.slow
def test_mixed_bfloat16_remembers_in_its_own_precision(kind):
    solver = tfdeq.FixedPointIteration(30, 1e-2)
    model, (exact, _, in_one_piece) = (
        _model(kind, dtype="mixed_bfloat16", solver=solver),
        _usual(kind),
    )
    model.set_weights(exact.get_weights())
    tokens = _tokens()
    logits, memory = _in_segments(model, _call(model), tokens)
    assert logits.dtype == tf.float32
    assert {leaf.dtype for leaf in tf.nest.flatten(memory)} <= {tf.bfloat16, tf.int32}
    # bfloat16 has 8 bits, the solves stop at 1e-2, and logits here reach 3.
    np.testing.assert_allclose(logits, in_one_piece(tokens)[0], atol=0.15)


def test_models_without_a_memory():
    model = _model("transformer", span=None)
    assert not model.remembers
    with pytest.raises(ValueError, match="LanguageModel 'language_model.*' has no memory"):
        model.initial_memory(2)
    with pytest.raises(ValueError, match=r"at most 5 long.*received shape \(3, 14\)"):
        model(_tokens())
    keras.utils.set_random_seed(0)
    model = LanguageModel(VOCABULARY, LENGTH, tfdeq.cells.DenseCell(8), width=8)
    assert not model.remembers


def test_the_embedding_may_have_a_width_of_its_own():
    model = _model("trellis")
    assert (model.width, model.state_width) == (6, WIDTH)
    assert model.readout.kernel.shape == (WIDTH, VOCABULARY)
    assert _model("transformer").width == WIDTH
