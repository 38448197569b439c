"""Tests of tfdeq.models.adaptive_softmax."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support.cases import MODES, in_mode
from tfdeq.models import AdaptiveEmbedding, AdaptiveSoftmax

VOCABULARY, WIDTH, CUTOFFS = 40, 16, (5, 15)
# Values of `tied_to`: None, an embedding with the hidden state's width, one with another width.
TIES = ("own", "tied", "tied, other width")


def _layer(ties="own", cutoffs=CUTOFFS, **settings):
    embedding = None
    if ties != "own":
        width = WIDTH if ties == "tied" else 2 * WIDTH
        embedding = AdaptiveEmbedding(VOCABULARY, width, cutoffs, **settings)
    layer = AdaptiveSoftmax(VOCABULARY, cutoffs, tied_to=embedding, **settings)
    layer.build((None, WIDTH))
    return layer


def _hidden(rows, dtype="float32"):
    return tf.constant(np.random.default_rng(0).normal(size=(rows, WIDTH)).astype(dtype))


def _log_softmax(logits):
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def _expected(layer, hidden, ties):
    """log p [N, V] by the definition, in float64."""
    h = np.array(hidden, "float64")
    tables = [np.array(table, "float64") for table in layer.tables]
    projections = [np.array(matrix, "float64") for matrix in layer.projections]
    if ties != "tied, other width":
        projections = [np.eye(WIDTH), *projections]
    rows = list(tables)
    if len(tables) > 1:
        rows[0] = np.concatenate([tables[0], layer.cluster_table])
    scale = {"own": lambda _: 1.0, "tied": lambda _: WIDTH**-0.5}.get(
        ties, lambda table: table.shape[1] ** -0.5
    )
    head, *tails = (
        _log_softmax(scale(e) * (h @ p.T) @ e.T) for e, p in zip(rows, projections, strict=True)
    )
    first = len(tables[0])
    parts = [head[:, first + i, None] + tail for i, tail in enumerate(tails)]
    return np.concatenate([head[:, :first], *parts], axis=1)


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("cutoffs", [(), (39,), CUTOFFS])
@pytest.mark.parametrize("mode", MODES)
def test_log_probabilities_and_loss_are_those_of_the_definition(mode, cutoffs, ties):
    layer = _layer(ties, cutoffs)
    targets = np.arange(VOCABULARY)[::-1].astype("int32")
    hidden = _hidden(VOCABULARY)
    expected = _expected(layer, hidden, ties)
    log_probabilities = in_mode(layer, mode)(hidden)
    assert log_probabilities.dtype == tf.float32
    np.testing.assert_allclose(log_probabilities, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(tf.reduce_sum(tf.exp(log_probabilities), axis=-1), 1.0, rtol=1e-5)
    loss = in_mode(layer.loss, mode)(hidden, targets)
    np.testing.assert_allclose(loss, -expected[range(VOCABULARY), targets], rtol=1e-5, atol=1e-5)


BATCHES = {
    "head only": [0, 4, 3],
    "one tail only": [15, 39, 20],
    "middle empty": [0, 39],
    "one row of the head": [2],
    "one row of a tail": [7],
    "no row": [],
    "equal rows": [39, 39, 39],
    "more rows than XLA takes at a time": 5 * list(range(VOCABULARY)),
}


@pytest.mark.parametrize("targets", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("mode", MODES)
def test_whatever_clusters_the_batch_has(mode, targets):
    layer = _layer("tied")
    targets = tf.constant(targets, tf.int64)
    hidden = _hidden(len(targets))

    def run():
        with tf.GradientTape() as tape:
            tape.watch(hidden)
            loss = layer.loss(hidden, targets)
            total = tf.reduce_sum(loss)
        variables = [variable.value for variable in layer.trainable_variables]
        gradients = tape.gradient(total, [hidden, *variables])
        return loss, [tf.convert_to_tensor(gradient) for gradient in gradients]

    loss, gradients = in_mode(run, mode)()
    expected = _expected(layer, hidden, "tied")
    np.testing.assert_allclose(loss, -expected[range(len(targets)), targets], rtol=1e-5, atol=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    # Clusters without a target get no gradient.
    for table, bounds in zip(layer.tables[1:], ((5, 15), (15, 40)), strict=True):
        position = [v is table for v in layer.trainable_variables].index(True)
        asked = any(bounds[0] <= target < bounds[1] for target in targets.numpy())
        assert np.any(gradients[1 + position]) == asked


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("mode", MODES)
def test_gradients(mode, ties):
    """In float64, compared with finite differences and with the gradients of the full computation."""
    layer = _layer(ties, dtype="float64")
    hidden = tf.Variable(_hidden(6, "float64"))
    targets = tf.constant([0, 7, 39, 4, 39, 16])
    weights = tf.constant([1.0, -2.0, 0.5, 3.0, 1.5, 0.7], tf.float64)
    matrices = [*layer.tables, *layer.projections, layer.cluster_table]
    variables = [hidden, *(variable.value for variable in matrices)]

    def short():
        return tf.reduce_sum(weights * layer.loss(hidden, targets))

    def whole():
        picked = tf.gather(layer(hidden), targets, axis=-1, batch_dims=1)
        return -tf.reduce_sum(weights * picked)

    def gradients(function):
        with tf.GradientTape() as tape:
            value = function()
        return [tf.convert_to_tensor(gradient) for gradient in tape.gradient(value, variables)]

    results = in_mode(lambda: gradients(short), mode)()
    random = np.random.default_rng(1)
    for variable, result, other in zip(variables, results, gradients(whole), strict=True):
        np.testing.assert_allclose(result, other, rtol=1e-9, atol=1e-12)
        direction = random.normal(size=variable.shape)
        before, values = variable.numpy(), []
        for step in (1e-5, -1e-5):
            variable.assign(before + step * direction)
            values.append(float(short()))
        variable.assign(before)
        difference = (values[0] - values[1]) / 2e-5
        # Differences of 1e-5 have errors of 1e-10 from curvature, and 1e-11 from rounding.
        np.testing.assert_allclose(np.sum(result * direction), difference, rtol=1e-7, atol=1e-8)


def test_tied_is_the_product_with_the_embedding():
    layer = _layer("tied")
    hidden = _hidden(3)
    vectors = np.array(layer.tied_to(tf.range(VOCABULARY)))
    logits = np.array(hidden) @ vectors.T * WIDTH**-0.5
    within = layer(hidden).numpy()[:, 15:]
    np.testing.assert_allclose(
        _log_softmax(logits[:, 15:]), _log_softmax(within), rtol=1e-5, atol=1e-5
    )
    own = [
        variable.path for variable in layer.trainable_variables if "cluster_table" in variable.path
    ]
    assert len(layer.trainable_variables) == len(layer.tied_to.trainable_variables) + len(own)


@pytest.mark.parametrize("ties", TIES)
def test_first_logits_have_unit_scale(ties):
    """For each cluster: the spread of log p in a cluster is that of its logits."""
    cutoffs = (4_000, 8_000)
    embedding = None
    if ties != "own":
        width = 64 if ties == "tied" else 128
        embedding = AdaptiveEmbedding(12_000, width, cutoffs)
    layer = AdaptiveSoftmax(12_000, cutoffs, tied_to=embedding)
    log_probabilities = layer(tf.random.stateless_normal([64, 64], [3, 4])).numpy()
    spreads = [np.std(part, axis=1).mean() for part in np.split(log_probabilities, cutoffs, axis=1)]
    # The last cluster's width is only 4 or 8.
    np.testing.assert_allclose(spreads, 1.0, atol=0.25)
    np.testing.assert_allclose(spreads[0], 1.0, atol=0.05)


@pytest.mark.parametrize("mode", MODES)
def test_leading_dimensions(mode):
    layer = _layer()
    hidden = tf.reshape(_hidden(6), [2, 3, WIDTH])
    targets = tf.constant([[0, 7, 39], [14, 15, 4]])
    log_probabilities, loss = in_mode(lambda h, t: (layer(h), layer.loss(h, t)), mode)(
        hidden, targets
    )
    assert log_probabilities.shape == (2, 3, VOCABULARY)
    assert loss.shape == (2, 3)
    picked = tf.gather(log_probabilities, targets, axis=-1, batch_dims=2)
    np.testing.assert_allclose(loss, -picked, rtol=1e-5, atol=1e-5)


def test_graph_of_any_batch_size():
    layer = _layer()
    signature = [tf.TensorSpec([None, WIDTH]), tf.TensorSpec([None], tf.int32)]
    loss = tf.function(layer.loss, input_signature=signature)
    hidden, targets = _hidden(6), tf.constant([0, 7, 39, 4, 20, 16])
    together = loss(hidden, targets)
    alone = [loss(hidden[i : i + 1], targets[i : i + 1])[0] for i in range(6)]
    np.testing.assert_allclose(alone, together, rtol=1e-6)


def test_the_tail_sees_its_rows_only():
    """In a graph, the widest product of a tail has only the members' rows."""
    layer = _layer()
    seen, logits = [], layer._logits

    def recording(i, hidden, *weights):
        seen.append((i, len(hidden)))
        return logits(i, hidden, *weights)

    layer._logits = recording
    layer.loss(_hidden(6), tf.constant([0, 7, 39, 4, 20, 16]))
    assert seen == [(0, 6), (1, 1), (2, 3)]


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_float32_under_mixed_policies(policy, ties):
    layer = _layer(ties, dtype=policy)
    hidden, targets = _hidden(4), tf.constant([0, 39, 7, 16])
    assert layer(hidden).dtype == tf.float32
    expected = _expected(layer, hidden, ties)
    np.testing.assert_allclose(layer(hidden), expected, rtol=1e-5, atol=1e-5)

    # Even inside a layer with a lower compute dtype.
    class Outer(keras.layers.Layer):
        def call(self, tokens):
            return layer.loss(hidden, tokens)

    loss = Outer(dtype=policy)(targets)
    assert loss.dtype == tf.float32
    np.testing.assert_allclose(loss, -expected[range(4), targets], rtol=1e-5, atol=1e-5)


def test_hidden_states_of_another_dtype():
    layer, hidden = _layer(), _hidden(2)
    for dtype in ("float64", "float16"):
        other = hidden.numpy().astype(dtype)
        assert layer(other).dtype == layer.loss(other, [0, 39]).dtype == tf.float32
        np.testing.assert_allclose(layer(other), layer(other.astype("float32")), rtol=1e-6)


def test_short_hidden_states_and_weights():
    layer = _layer("tied", dtype="bfloat16")
    hidden = tf.cast(_hidden(4), tf.bfloat16)
    result = layer(hidden)
    assert result.dtype == tf.float32
    np.testing.assert_allclose(result, _expected(layer, hidden, "tied"), rtol=1e-5, atol=1e-5)


def _language_model(ties):
    tokens = keras.Input([3], dtype="int32")
    width = WIDTH if ties == "tied" else 2 * WIDTH
    embedding = AdaptiveEmbedding(VOCABULARY, width, CUTOFFS, name="words")
    x = keras.layers.Dense(WIDTH)(embedding(tokens))
    tied_to = None if ties == "own" else embedding
    return keras.Model(tokens, AdaptiveSoftmax(VOCABULARY, CUTOFFS, tied_to=tied_to)(x))


@pytest.mark.parametrize("ties", TIES)
def test_save_and_load(tmp_path, ties):
    model = _language_model(ties)
    assert model.output_shape == (None, 3, VOCABULARY)
    tokens = np.array([[0, 7, 39], [14, 15, 4]])
    before = model(tokens)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(tokens), before, rtol=1e-6)
    assert len(loaded.weights) == len(model.weights)
    softmax = loaded.layers[-1]
    assert (softmax.tied_to is loaded.get_layer("words")) == (ties != "own")
    np.testing.assert_allclose(
        softmax.loss(_hidden(3), [0, 7, 39]),
        model.layers[-1].loss(_hidden(3), [0, 7, 39]),
        rtol=1e-6,
    )


@pytest.mark.parametrize("ties", TIES)
def test_config(ties):
    layer = _layer(ties)
    config = layer.get_config()
    copy = AdaptiveSoftmax.from_config(config)
    assert copy.get_config() == config
    copy.build((None, WIDTH))
    copy.set_weights(layer.get_weights())
    np.testing.assert_allclose(copy(_hidden(2)), layer(_hidden(2)), rtol=1e-6)


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("ties", TIES)
def test_learns(ties, mode):
    """Learns the successor of each token in every cluster with `loss`; tied matrices have two uses."""
    layer = _layer(ties)
    embedding = layer.tied_to or AdaptiveEmbedding(VOCABULARY, WIDTH, CUTOFFS)
    tokens, targets = tf.range(36), tf.range(36) * 7 % 36
    embedding(tokens)
    unique = {id(v): v for v in [*layer.trainable_variables, *embedding.trainable_variables]}
    variables = list(unique.values())
    optimizer = keras.optimizers.Adam(0.05)
    optimizer.build(variables)

    def step():
        with tf.GradientTape() as tape:
            hidden = embedding(tokens)[:, :WIDTH]
            loss = tf.reduce_mean(layer.loss(hidden, targets))
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
        return loss

    step = in_mode(step, mode)
    first = float(step())
    for _ in range(60):
        last = float(step())
    # Not to zero: with a width of 1, the last cluster cannot distinguish its 25 tokens.
    assert last < 0.5 * first


def test_loss_builds_the_layer():
    layer = AdaptiveSoftmax(VOCABULARY, CUTOFFS)
    assert layer.loss(_hidden(2), [0, 39]).shape == (2,)
    assert layer.built


@pytest.mark.parametrize("target", [-1, 40])
def test_what_is_no_token_is_refused(target):
    with pytest.raises(tf.errors.InvalidArgumentError, match="label"):
        _layer().loss(_hidden(2), [3, target])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([0.0, 1.0], r"integers, one for each row of hidden; received float32 of shape \(2,\)"),
        ([0, 1, 2], r"received int32 of shape \(3,\) for hidden of shape \(2, 16\)"),
        ([[0, 1]], r"received int32 of shape \(1, 2\) for hidden of shape \(2, 16\)"),
    ],
)
def test_bad_targets(targets, message):
    with pytest.raises(ValueError, match=message):
        _layer().loss(_hidden(2), targets)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocabulary_size": 0}, "vocabulary_size must be an integer of at least 1; received 0"),
        ({"factor": 0}, "factor must be an integer of at least 1; received 0"),
        ({"cutoffs": [15, 5]}, r"must increase; received \(15, 5\)"),
        ({"cutoffs": [5, 40]}, r"below vocabulary_size, 40; received \(5, 40\)"),
        ({"tied_to": "words"}, "tied_to must be an AdaptiveEmbedding or None; received 'words'"),
        (
            {"tied_to": AdaptiveEmbedding(41, 16, (5, 15))},
            "same vocabulary_size; received 41 there and 40 here",
        ),
        (
            {"tied_to": AdaptiveEmbedding(40, 16, (5, 10))},
            r"same cutoffs; received \(5, 10\) there and \(5, 15\) here",
        ),
        (
            {"tied_to": AdaptiveEmbedding(40, 16, (5, 15), 2)},
            "same factor; received 2 there and 4 here",
        ),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveSoftmax(**{"vocabulary_size": 40, "cutoffs": [5, 15], **settings})


def test_width_that_cannot_be_divided():
    layer = AdaptiveSoftmax(40, [5, 15])
    with pytest.raises(ValueError, match=r"4\^2 = 16; received width 24. Take a multiple"):
        layer(tf.zeros([2, 24]))
