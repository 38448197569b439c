"""Tests of tfdeq.cell_calls.masks, through the layer: Keras's masks inside a cell, and on its equilibrium."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import tfdeq
from tests.support.cases import MODES, fast, in_mode
from tfdeq.cell_calls.masks import CellMasks, attach_masks, fits, masks_of
from tfdeq.cells import stacked

TIGHT = tfdeq.Broyden(max_steps=60, tolerance=1e-6)
TOKENS = np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0], [1, 2, 3, 4, 5]])
MASK = TOKENS > 0


def _small():
    return keras.initializers.RandomNormal(stddev=0.2, seed=1)


def _mask(tensor):
    mask = getattr(tensor, "_keras_mask", None)
    return None if mask is None else np.array(mask).tolist()


def _embedding():
    return keras.layers.Embedding(6, 4, mask_zero=True)


def _pooling_cell():
    """A cell with a state [B, 4] for a padded sequence [B, T, 4]."""
    z, x = keras.Input((4,)), keras.Input((None, 4))
    pooled = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model([z, x], ops.tanh(0.2 * z + 20.0 * pooled))


def _attending_cell():
    """A cell whose state, like x, attends to x; Keras passes the mask of x to the attention."""
    z, x = keras.Input((None, 4)), keras.Input((None, 4))
    attention = keras.layers.MultiHeadAttention(2, 2, kernel_initializer=_small())
    return keras.Model([z, x], ops.tanh(attention(z, x) + x))


@keras.saving.register_keras_serializable(package="tfdeq_tests")
class RecurrentCell(keras.layers.Layer):
    """A recurrent layer over z, which skips the places in the mask of z, an output of the cell."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.recurrent = keras.layers.GRU(
            4, return_sequences=True, kernel_initializer=_small(), recurrent_initializer=_small()
        )

    def call(self, z, x, mask=None):
        return self.recurrent(z) + x


def _by_hand(cell, x, applications=60):
    mask, z = masks_of(x)[0], tf.zeros([len(x), 4]) if _state_rank(cell) == 2 else tf.zeros_like(x)
    for _ in range(applications):
        # Keras's attention removes the mask from its input tensors.
        marked = attach_masks(x, (mask,))
        is_layer = isinstance(cell, RecurrentCell)
        z = cell(z, marked, mask=mask) if is_layer else cell([z, marked])
    return z


def _state_rank(cell):
    return 3 if isinstance(cell, RecurrentCell) else len(cell.inputs[0].shape)


@pytest.mark.parametrize("training", fast([True], [False, True]))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "make", fast([_pooling_cell], [_pooling_cell, _attending_cell, RecurrentCell])
)
def test_layers_in_the_cell_see_the_mask_of_x(make, mode, training):
    embedding, layer = _embedding(), tfdeq.DEQLayer(make(), TIGHT)
    x = embedding(TOKENS)
    layer(x)
    assert _mask(x) == MASK.tolist()
    expected = _by_hand(layer.cell, x)

    def call(tokens):
        with tf.GradientTape() as tape:
            z = layer(embedding(tokens), training=training)
            loss = tf.reduce_sum(z**2)
        return z, tape.gradient(loss, embedding.embeddings.value)

    z, gradient = in_mode(call, mode)(tf.constant(TOKENS))
    np.testing.assert_allclose(z, expected, atol=2e-5)
    without = layer(tf.identity(x))
    assert np.abs(without - expected).max() > 1e-3, "the mask makes no difference here"
    # Padding affects neither the answer of a pooled state nor its gradient.
    if make is _pooling_cell:
        np.testing.assert_array_equal(tf.convert_to_tensor(gradient)[0], np.zeros(4))
        np.testing.assert_allclose(layer(embedding(TOKENS[:1, :3]))[0], z[0], atol=2e-5)


def test_the_mask_is_seen_where_rows_leave_the_batch():
    scale = np.array([1.0, 1e-3, 1.0])[:, None, None]
    layer, embedding = tfdeq.DEQLayer(_attending_cell(), TIGHT), _embedding()
    x = tf.constant(scale * embedding(TOKENS), tf.float32)
    x._keras_mask = tf.constant(MASK)
    together = layer(x, return_solution=True)
    assert len(set(together.steps.numpy())) > 1
    np.testing.assert_allclose(together.z, _by_hand(layer.cell, x), atol=2e-5)


def test_masks_of_a_nest_reach_their_own_leaves():
    class Cell(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.pool = keras.layers.GlobalAveragePooling1D()

        def initial_state(self, x):
            return tf.zeros_like(x["b"][:, 0])

        def call(self, z, x):
            return ops.tanh(0.3 * z + 20.0 * self.pool(x["a"]) - 10.0 * self.pool(x["b"]))

    embedding = _embedding()
    x = {"a": embedding(TOKENS), "b": embedding(TOKENS[:, ::-1])}
    layer = tfdeq.DEQLayer(Cell(), TIGHT)
    expected = tf.zeros([3, 4])
    layer(x)
    for _ in range(60):
        expected = layer.cell(expected, x)
    np.testing.assert_allclose(layer(x), expected, atol=2e-5)
    np.testing.assert_allclose(layer(x, tolerance=tf.constant(1e-6)), expected, atol=2e-5)
    assert _mask(layer(x)) is None


def test_an_explicit_mask_is_that_of_x():
    layer, x = tfdeq.DEQLayer(_pooling_cell(), TIGHT), _embedding()(TOKENS)
    received = layer(tf.identity(x), mask=tf.constant(MASK))
    np.testing.assert_allclose(received, layer(x), atol=2e-5)


# --- what the equilibrium carries -------------------------------------------------------------------


class Slots(keras.layers.Layer):
    """As many slots as x happens to have places, or one vector."""

    supports_masking = True

    def __init__(self, shape, **kwargs):
        super().__init__(**kwargs)
        self.shape = shape

    def initial_state(self, x):
        return tf.zeros([tf.shape(x)[0], *self.shape])

    def call(self, z, x, mask=None):
        return 0.3 * z + 1.0


@pytest.mark.parametrize("shape", [(5,), (5, 4)])
def test_a_state_of_another_origin_carries_no_mask(shape):
    """Equal sizes are not enough: five slots, five places, and a mask [B, 5]."""
    layer, x = tfdeq.DEQLayer(Slots(shape)), _embedding()(TOKENS)
    assert _mask(layer(x)) is None
    assert keras.tree.flatten(layer.compute_mask(x, x._keras_mask)) == [None]


class Projected(keras.layers.Layer):
    """A state of x's length and another width."""

    def initial_state(self, x):
        return tf.zeros([*tf.unstack(tf.shape(x)[:2]), 2])

    def call(self, z, x):
        return 0.3 * z + ops.mean(x, axis=-1, keepdims=True)


class Shortened(keras.layers.Layer):
    """Determines the mask of its state itself."""

    def initial_state(self, x):
        return tf.zeros_like(x)

    def compute_mask(self, z, previous_mask=None):
        return None

    def call(self, z, x, mask=None):
        return 0.3 * z + x


@pytest.mark.parametrize(
    "settings",
    fast(
        [{"return_solution": True}],
        [{}, {"return_solution": True}, {"return_solution": True, "iterates": (2,)}],
    ),
)
def test_a_state_of_the_length_of_x_carries_its_mask(settings):
    x = _embedding()(TOKENS)
    for make in (_attending_cell, RecurrentCell, Projected):
        result = tfdeq.DEQLayer(make())(x, **settings)
        first, *others = tf.nest.flatten(result)
        assert _mask(first) == MASK.tolist(), make
        if "return_solution" in settings:
            assert [_mask(one) for one in others[:3]] == [None] * 3
    for make in (Shortened, _pooling_cell):
        first = tf.nest.flatten(tfdeq.DEQLayer(make())(x, **settings))[0]
        assert _mask(first) is None, make


def test_leaves_of_a_nest_carry_their_own_masks():
    class Cell(keras.layers.Layer):
        def call(self, z, x):
            return keras.tree.map_structure(lambda z, x: 0.3 * z + x, z, x)

    x = {"a": tf.ones([3, 2]), "b": _embedding()(TOKENS)}
    z = tfdeq.DEQLayer(Cell())(x)
    assert _mask(z["a"]) is None
    assert _mask(z["b"]) == MASK.tolist()


def test_a_mask_that_the_cell_makes_is_carried():
    z, x = keras.Input((5, 4)), keras.Input((5, 4))
    masked = keras.layers.Masking()(x)
    output = keras.layers.Activation("tanh")(masked) + 0.0
    hidden = keras.layers.Average()([0.2 * z, output])
    cell = keras.Model([z, x], keras.layers.Masking(mask_value=0.0)(hidden))
    values = np.where(MASK[..., None], 1.0, 0.0) * np.ones([3, 5, 4])
    layer = tfdeq.DEQLayer(cell, TIGHT)
    for _ in range(2):
        assert _mask(layer(tf.constant(values, tf.float32))) == MASK.tolist()


@pytest.mark.slow
def test_losses_of_a_model_leave_padding_out_only_where_there_is_some():
    """A loss is masked by the mask of the prediction; a state [B, 4] has none, even if T = B."""
    tokens = np.concatenate([TOKENS, TOKENS[:2]])  # B = T = 5
    y = np.random.default_rng(0).normal(size=(5, 1)).astype("float32")
    inputs = keras.Input((5,), dtype="int32")
    z = tfdeq.DEQLayer(_pooling_cell(), TIGHT)(_embedding()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(z))
    model.compile("sgd", "mse", jit_compile=False)
    expected = float(np.mean((model.predict(tokens, verbose=0) - y) ** 2))
    for rows in (5, 3):
        model.evaluate(tokens[:rows], y[:rows], verbose=0)
    received = model.evaluate(tokens, y, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(received, expected, rtol=1e-5)


@pytest.mark.slow
def test_masks_survive_saving_and_exporting(tmp_path):
    inputs = keras.Input((5,), dtype="int32")
    layer = tfdeq.DEQLayer(_pooling_cell(), TIGHT)
    model = keras.Model(inputs, layer(_embedding()(inputs)))
    expected = model(TOKENS)
    np.testing.assert_allclose(model(TOKENS[:1] * 1), expected[:1], atol=2e-5)
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(
        keras.saving.load_model(tmp_path / "model.keras")(TOKENS), expected, atol=2e-5
    )
    model.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(served.serve(tf.constant(TOKENS, tf.int32)), expected, atol=2e-5)


@pytest.mark.slow
def test_a_cell_on_another_sees_the_mask_of_the_state_under_it():
    layer = tfdeq.DEQLayer(stacked(RecurrentCell(), _pooling_cell()), TIGHT)
    x = _embedding()(TOKENS)
    z_a, z_b = layer(x)
    np.testing.assert_allclose(z_b, _by_hand(layer.cell.b, z_a), atol=2e-5)
    alone = tfdeq.DEQLayer(layer.cell.a, TIGHT)(x)
    assert _mask(alone) == _mask(z_a) == MASK.tolist()
    np.testing.assert_allclose(z_a, alone, atol=2e-5)
    assert _mask(z_b) is None


# --- the pieces -------------------------------------------------------------------------------------


def test_masks_are_exchanged_by_what_they_are():
    one, other = tf.constant([True]), tf.constant([False])
    masks = CellMasks({"a": one, "b": None}, (one, other), (None,))
    assert len(masks.leaves()) == 2
    new = masks.with_leaves([other, one])
    assert new.argument["a"] is other
    assert (new.x[0], new.x[1], new.z) == (other, one, (None,))
    assert masks.passed_on(one)
    assert not masks.passed_on(other)
    assert not masks.passed_on(None)


def test_attached_masks_are_on_copies():
    x = (tf.ones([1, 2, 3]), tf.ones([1]))
    mask = tf.constant([[True, False]])
    marked = attach_masks(x, (mask, None))
    assert masks_of(marked) == (mask, None)
    assert masks_of(x) == (None, None)
    assert attach_masks(x, (None, None)) is x
    assert fits(x[0], mask)
    assert not fits(x[1], mask)
