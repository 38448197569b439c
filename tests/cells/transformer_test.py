"""Tests of tfdeq.cells.transformer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, fast, in_mode
from tfdeq.cells import TransformerCell

WIDTH, HEADS, LENGTH = 8, 2, 5


def _inputs(batch=2, length=LENGTH):
    return np.random.default_rng(0).normal(size=(batch, length, WIDTH)).astype("float32")


def _layer(**settings):
    # With the default recurrent_scale of 0 the first equilibrium would not depend on z.
    settings = {"recurrent_scale": 0.5, **settings}
    # Fixed weights, because for some weights only rounding decides whether a residual meets the
    # tolerance.
    keras.utils.set_random_seed(0)
    cell = TransformerCell(WIDTH, HEADS, LENGTH, **settings)
    return tfdeq.DEQLayer(cell, tfdeq.Anderson(max_steps=100, tolerance=1e-6))


def _weights(layer):
    return [variable.value for variable in layer.trainable_variables]


def _reference(cell, z, x):
    """The documented equations in numpy: a + MLP(norm(a)) with a = x + Attention(norm(z) W + x U).

    For post-norm: norm(a + MLP(a)) with a = norm(x + Attention(z W + x U)).
    """

    def norm(y):
        return y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)

    post = cell.norm == "post"
    qkv = (z if post else norm(z)) @ cell.query_key_value.kernel.numpy()
    qkv = (qkv + x @ cell.injection.kernel.numpy()).reshape(*z.shape[:2], 3, HEADS, WIDTH // HEADS)
    query, key, value = (qkv[:, :, part].transpose(0, 2, 1, 3) for part in range(3))
    if cell.query_key_norm:
        query, key = norm(query), norm(key)
    scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(WIDTH // HEADS)
    distance = np.subtract.outer(np.arange(z.shape[1]), np.arange(z.shape[1]))
    table = cell.distance_bias.table.embeddings.numpy()
    bias = table[np.clip(distance, 0, len(table) - 1)].transpose(2, 0, 1)
    seen = (distance >= 0) & (distance < (cell.span or LENGTH))
    scores = np.where(seen, scores + bias, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    attended = (shares / shares.sum(-1, keepdims=True)) @ value
    attended = attended.transpose(0, 2, 1, 3).reshape(z.shape)
    a = x + attended @ cell.attention_output.kernel.numpy()
    a = norm(a) if post else a
    hidden = (a if post else norm(a)) @ cell.expand.kernel.numpy()
    output = a + keras.ops.gelu(hidden, approximate=True).numpy() @ cell.contract.kernel.numpy()
    return norm(output) if post else output


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize(
    ("span", "query_key_norm"),
    fast(
        [(None, False), (4, True)],
        [(None, False), (None, True), (1, False), (2, False), (4, False), (4, True), (9, False)],
    ),
)
def test_one_application_is_the_documented_equation(span, query_key_norm, norm):
    """With a span, also for a text longer than sequence_length."""
    layer = _layer(span=span, norm=norm, query_key_norm=query_key_norm)
    x = _inputs(length=LENGTH if span is None else LENGTH + 3)
    z = x[::-1].copy()
    layer(x, explicit_steps=1)  # builds it
    cell = layer.cell
    table = cell.distance_bias.table.embeddings
    table.assign(np.random.default_rng(1).normal(size=table.shape))
    np.testing.assert_allclose(
        cell(z, cell.inject(x)), _reference(cell, z, x), rtol=1e-4, atol=1e-5
    )


def test_a_span_sees_its_positions_and_no_others():
    """In one application; in the equilibrium, information from further away also arrives."""
    layer = _layer(span=3)
    x, z = _inputs(length=8), _inputs(length=8)[::-1].copy()
    layer(x, explicit_steps=1)  # builds it
    cell = layer.cell
    before = cell(z, cell.inject(x))
    for change_x, change_z in ((1.0, 0.0), (0.0, 1.0)):
        other_x, other_z = x.copy(), z.copy()
        other_x[:, 2] += change_x
        other_z[:, 2, :4] += change_z
        moved = np.abs(cell(other_z, cell.inject(other_x)) - before).max(axis=(0, 2)) > 0
        np.testing.assert_array_equal(moved, [False] * 2 + [True] * 3 + [False] * 3)
    other_x = x.copy()
    other_x[:, 2] += 1.0
    moved = np.abs(layer(other_x) - layer(x)).max(axis=(0, 2))
    assert (moved[3:7] > 1e-4).all()


def test_a_span_beyond_the_text_is_no_span():
    layer, other = _layer(), _layer(span=LENGTH + 9)
    x = _inputs()
    expected = layer(x, explicit_steps=3)
    np.testing.assert_allclose(other(x, explicit_steps=3), expected, rtol=1e-5, atol=1e-6)


def test_post_norm_holds_the_states_length():
    """After a root-mean-square norm without gains, every position has a mean square of 1."""
    z = _layer(norm="post")(_inputs(), explicit_steps=3)
    np.testing.assert_allclose(np.mean(np.square(z), axis=-1), 1.0, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_equilibrium_converges(mode):
    layer = _layer()
    x = tf.constant(_inputs())
    layer(x, explicit_steps=1)  # builds it
    solution = in_mode(lambda x: layer(x, return_solution=True), mode)(x)
    assert solution.converged.numpy().all()
    np.testing.assert_allclose(
        layer.cell(solution.z, layer.cell.inject(x)), solution.z, rtol=1e-4, atol=1e-4
    )


def test_equilibrium_is_causal():
    """Later positions do not change earlier ones, not even through the solver's steps on the whole state."""
    layer = _layer()
    x = _inputs()
    other = x.copy()
    other[:, 3:] += 1.0
    before, after = layer(x).numpy(), layer(other).numpy()
    # Both solves stop at 1e-6 of the norm of the whole state, here about 10.
    np.testing.assert_allclose(after[:, :3], before[:, :3], atol=1e-4)
    assert np.abs(after[:, 3:] - before[:, 3:]).min(axis=-1).max() > 1e-2
    np.testing.assert_allclose(layer(x[:, :3]), before[:, :3], atol=1e-4)


@pytest.mark.parametrize("norm", fast(["post"], ["pre", "post"]))
def test_every_weight_gets_a_gradient(norm):
    layer = _layer(norm=norm)
    x = tf.constant(_inputs())
    layer(x, explicit_steps=1)  # builds it
    with tf.GradientTape() as tape:
        tape.watch(x)
        # Not the sum of squares, which the final norm makes constant.
        loss = tf.reduce_sum(layer(x)[..., 0] ** 2)
    names = [variable.path for variable in layer.trainable_variables]
    for name, gradient in zip(
        [*names, "x"], tape.gradient(loss, [*_weights(layer), x]), strict=True
    ):
        assert np.abs(gradient).max() > 1e-6, name


def test_dropout_is_constant_in_the_solve():
    layer = _layer(dropout=0.3)
    x = _inputs()
    layer(x, explicit_steps=1)  # builds it
    noisy = layer(x, training=True, return_solution=True)
    assert (noisy.residual.numpy() <= 1e-6).all()
    assert np.abs(noisy.z - layer(x)).max() > 1e-2


def test_locked_dropout_masks_are_equal_over_positions():
    x = np.repeat(_inputs(batch=1, length=1), 64, axis=0).repeat(LENGTH, axis=1)
    for locked in (True, False):
        layer = _layer(dropout=0.5, locked_dropout=locked)
        layer(x, explicit_steps=1)  # builds it
        cell = layer.cell
        for dropout in (cell.attention_dropout, cell.feedforward_dropout):
            masks = dropout(tf.ones([64, LENGTH, WIDTH]), training=True).numpy()
            same = (masks == masks[:, :1]).all()
            assert same == locked
            assert len(np.unique(masks[:, 0], axis=0)) > 32  # each example has its own
            assert 0.4 < np.mean(masks == 0) < 0.6
        # With equal inputs at all positions, attention is also equal, so the masks are visible in
        # f.
        output = layer(x, training=True, explicit_steps=1).numpy()
        spread = np.abs(output - output[:, :1]).max()
        assert spread < 1e-5 if locked else spread > 0.1


@pytest.mark.parametrize("locked", [False, True])
def test_dropout_is_in_training_alone(locked):
    layer = _layer(dropout=0.5, locked_dropout=locked)
    x = _inputs()
    still = layer(x, explicit_steps=1)
    np.testing.assert_array_equal(layer(x, training=False, explicit_steps=1), still)
    assert np.abs(layer(x, training=True, explicit_steps=1) - still).max() > 1e-2


def test_config_round_trip():
    settings = {"span": 7, "norm": "post", "distance_slope": 0.25, "locked_dropout": True}
    settings["query_key_norm"] = True
    cell = TransformerCell(
        WIDTH, HEADS, LENGTH, feedforward=12, dropout=0.1, name="block", **settings
    )
    config = cell.get_config()
    assert {name: config[name] for name in settings} == settings
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(cell))
    assert again.get_config() == config
    assert config["feedforward"] == 12
    assert TransformerCell(WIDTH, HEADS, LENGTH).feedforward == 4 * WIDTH


def test_starts_as_a_cell_with_nothing_to_solve():
    """W = 0: f does not depend on z, so one application is the equilibrium."""
    layer = _layer(recurrent_scale=0.0)
    x = _inputs()
    np.testing.assert_allclose(layer(x), layer(x, explicit_steps=1), rtol=1e-5, atol=1e-6)
    start = layer.cell.distance_bias.table.embeddings.numpy()
    np.testing.assert_allclose(start[3], [-3 * 2**-1, -3 * 2**-5])


def test_masked_positions_stay_at_zero_and_change_no_other():
    layer = _layer()
    x = _inputs()
    mask = np.array([[True] * 3 + [False] * 2] * 2)
    solution = layer(x, mask=mask, return_solution=True)
    short = layer(x[:, :3], return_solution=True)
    np.testing.assert_array_equal(solution.z[:, 3:], np.zeros([2, 2, WIDTH]))
    np.testing.assert_allclose(solution.z[:, :3], short.z, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(solution.steps, short.steps)


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_distance_slope_scales_the_start(slope):
    usual = _layer().cell.distance_bias.table.embeddings
    scaled = _layer(distance_slope=slope).cell.distance_bias.table.embeddings
    np.testing.assert_allclose(scaled, slope * usual, rtol=1e-6)


def test_text_too_long():
    with pytest.raises(
        ValueError,
        match=r"at most 5 long.*received shape \(2, 6, 8\).*into windows, or give the cell a span",
    ):
        _layer()(_inputs(length=LENGTH + 1))


@pytest.mark.parametrize("dtype", ["float64", "mixed_bfloat16"])
def test_dtype_given_to_the_cell_reaches_its_parts(dtype):
    cell = TransformerCell(WIDTH, HEADS, LENGTH, dtype=dtype)
    for layer in cell._flatten_layers(include_self=False):
        assert layer.dtype_policy.name == dtype, layer.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 5), "width must be an integer of at least 1; received 0"),
        ((8, 0, 5), "heads must be an integer of at least 1; received 0"),
        ((8, 3, 5), "heads must divide width; received width 8, heads 3"),
        ((8, 2, 0), "sequence_length must be an integer of at least 1; received 0"),
        ((8, 2, 5, 0), "feedforward must be an integer of at least 1; received 0"),
    ],
)
def test_sizes_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        TransformerCell(*arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"span": 0}, "span must be an integer of at least 1; received 0"),
        ({"span": 2.0}, "span must be an integer of at least 1; received 2.0"),
        ({"recurrent_scale": -1}, "recurrent_scale must be >= 0; received -1"),
        ({"norm": "layer"}, 'norm must be "pre" or "post"; received \'layer\''),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        TransformerCell(WIDTH, HEADS, LENGTH, **settings)
