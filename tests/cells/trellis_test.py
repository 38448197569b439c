"""Tests of tfdeq.cells.trellis."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, fast, in_mode
from tfdeq.cells import TrellisCell

WIDTH, FEATURES, LENGTH = 6, 4, 7


def _inputs(batch=2, length=LENGTH, dtype="float64"):
    return np.random.default_rng(0).normal(size=(batch, length, FEATURES)).astype(dtype)


def _state(batch=2, length=LENGTH):
    return np.random.default_rng(1).normal(size=(batch, length, WIDTH))


def _layer(tolerance=1e-11, dtype="float64", **settings):
    # With the default recurrent_scale of 0 the first equilibrium would not depend on z.
    cell = TrellisCell(WIDTH, dtype=dtype, **{"recurrent_scale": 0.7, **settings})
    return tfdeq.DEQLayer(cell, tfdeq.Anderson(max_steps=100, tolerance=tolerance), dtype=dtype)


def _past(kernel_size=2, batch=2):
    random = np.random.default_rng(2)
    before = kernel_size - 1
    return {
        "c": tf.constant(random.normal(size=[batch, WIDTH])),
        "h": tf.constant(random.normal(size=[batch, before, WIDTH])),
        "input": tf.constant(random.normal(size=[batch, before, FEATURES])),
    }


def _sigmoid(a):
    return 1 / (1 + np.exp(-a))


def _gates(cell, h, x, past, t):
    """Returns the pre-activations of the gates at position t, tap by tap."""
    k = cell.kernel_size
    w = np.reshape(cell.recurrent.kernel, [k, WIDTH, 4 * WIDTH])
    u = np.reshape(cell.injection.kernel, [k, FEATURES, 4 * WIDTH])
    total = np.tile(cell.injection.bias.numpy(), [len(x), 1])
    for tap in range(k):
        place = t - (k - 1) + tap
        at_h = h[:, place] if place >= 0 else past["h"][:, place]
        at_x = x[:, place] if place >= 0 else past["input"][:, place]
        total = total + at_h @ w[tap] + at_x @ u[tap]
    return np.split(total, 4, axis=-1)


def _reference(cell, h, x, past):
    """The documented equation in numpy, position by position."""
    output, c = np.zeros_like(h), np.array(past["c"])
    for t in range(h.shape[1]):
        i, o, g, f = _gates(cell, h, x, past, t)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        output[:, t] = _sigmoid(o) * np.tanh(c)
    return output


def _source_layer(cell, h, c, x, past):
    """One layer of the source: it takes c_{t−1} from the layer below, and passes on h and c."""
    new_h, new_c = np.zeros_like(h), np.zeros_like(c)
    for t in range(h.shape[1]):
        i, o, g, f = _gates(cell, h, x, past, t)
        before = c[:, t - 1] if t else np.array(past["c"])
        new_c[:, t] = _sigmoid(f) * before + _sigmoid(i) * np.tanh(g)
        new_h[:, t] = _sigmoid(o) * np.tanh(new_c[:, t])
    return new_h, new_c


@pytest.mark.parametrize("length", fast([1, 5], [1, 2, 5, 8]))
@pytest.mark.parametrize("kernel_size", [1, 2, 3])
@pytest.mark.parametrize("normalization", [None, "weight"])
def test_one_application_is_the_documented_equation(kernel_size, length, normalization):
    layer = _layer(kernel_size=kernel_size, normalization=normalization)
    x, z, past = _inputs(length=length), _state(length=length), _past(kernel_size)
    cell, segment = layer.cell, {"input": tf.constant(x), "past": past}
    actual = cell(z, cell.inject(segment))
    np.testing.assert_allclose(actual, _reference(cell, z, x, past), rtol=1e-12, atol=1e-13)
    without = {name: np.zeros_like(w) for name, w in past.items()}
    actual = cell(z, cell.inject(tf.constant(x)))
    np.testing.assert_allclose(actual, _reference(cell, z, x, without), rtol=1e-12, atol=1e-13)


@pytest.mark.slow
def test_length_may_be_unknown():
    layer = _layer()
    x = tf.constant(_inputs())
    expected = layer(x)
    spec = [tf.TensorSpec([None, None, FEATURES], tf.float64)]
    for jit_compile in (False, True):
        solve = tf.function(layer, input_signature=spec, jit_compile=jit_compile)
        np.testing.assert_allclose(solve(x), expected, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(solve(x[:, :3]), expected[:, :3], rtol=1e-9, atol=1e-10)


def test_equilibrium_is_that_of_the_sources_weight_tied_network():
    """60 layers that pass on h and c reach the equilibrium of h alone."""
    layer = _layer()
    x, past = _inputs(), _past()
    z = layer({"input": tf.constant(x), "past": past})
    h, c = np.zeros([2, LENGTH, WIDTH]), np.zeros([2, LENGTH, WIDTH])
    for _ in range(60):
        h, c = _source_layer(layer.cell, h, c, x, past)
    np.testing.assert_allclose(z, h, atol=1e-9)
    deep = layer({"input": tf.constant(x), "past": past}, explicit_steps=40)
    np.testing.assert_allclose(z, deep, atol=1e-9)


def test_one_application_is_causal_to_the_last_bit():
    cell = _layer().cell
    x, z = _inputs(), _state()
    before = cell(z, cell.inject(tf.constant(x))).numpy()
    for t in range(LENGTH):
        for changed in ("x", "z"):
            other_x, other_z = x.copy(), z.copy()
            {"x": other_x, "z": other_z}[changed][:, t] += 1.0
            after = cell(other_z, cell.inject(tf.constant(other_x))).numpy()
            np.testing.assert_array_equal(after[:, :t], before[:, :t])
            assert (np.abs(after[:, t:] - before[:, t:]).max(axis=(0, 2)) > 1e-4).all()


def test_gates_see_the_kernels_positions_and_no_others():
    """Without memory in c (σ(f) = 0), a position affects k positions, starting with its own."""
    cell = _layer(kernel_size=3).cell
    x, z = _inputs(), _state()
    cell.inject(tf.constant(x))
    cell.injection.bias.assign(np.repeat([0.0, 0.0, 0.0, -1e4], WIDTH))
    before = cell(z, cell.inject(tf.constant(x)))
    for change_x, change_z in ((1.0, 0.0), (0.0, 1.0)):
        other_x, other_z = x.copy(), z.copy()
        other_x[:, 2] += change_x
        other_z[:, 2] += change_z
        after = cell(other_z, cell.inject(tf.constant(other_x)))
        moved = np.abs(after - before).max(axis=(0, 2)) > 0
        np.testing.assert_array_equal(moved, [False, False, True, True, True, False, False])


def test_equilibrium_is_causal():
    layer = _layer()
    x = _inputs()
    other = x.copy()
    other[:, 3:] += 1.0
    before, after = layer(x).numpy(), layer(other).numpy()
    # Both solves stop at 1e-11 of the norm of the whole state.
    np.testing.assert_allclose(after[:, :3], before[:, :3], atol=1e-9)
    assert np.abs(after[:, 3:] - before[:, 3:]).max(axis=-1).min() > 1e-3


@pytest.mark.parametrize(
    ("kernel_size", "dtype"),
    fast([(3, "float64")], [(1, "float64"), (2, "float64"), (3, "float64"), (2, "float32")]),
)
def test_segments_are_the_whole_text(kernel_size, dtype):
    """Including segments shorter than the convolution's memory."""
    tolerance = 1e-11 if dtype == "float64" else 1e-7
    layer = _layer(kernel_size=kernel_size, dtype=dtype, tolerance=tolerance)
    x = tf.constant(_inputs(length=9, dtype=dtype))
    whole = layer(x)
    past, parts = None, []
    for segment in tf.split(x, [4, 1, 1, 3], axis=1):
        segment = segment if past is None else {"input": segment, "past": past}
        parts.append(layer(segment))
        past = layer.cell.remember(parts[-1], layer.cell.inject(segment))
    np.testing.assert_allclose(tf.concat(parts, axis=1), whole, atol=1e-6)
    at_end = layer.cell.remember(whole, layer.cell.inject(x))
    assert past.keys() == at_end.keys()
    for name in past:
        assert past[name].shape == at_end[name].shape
        np.testing.assert_allclose(past[name], at_end[name], atol=1e-6)


@pytest.mark.slow
def test_history_matters_and_gets_a_gradient():
    layer = _layer()
    x, past = tf.constant(_inputs()), _past()
    with tf.GradientTape() as tape:
        tape.watch(past)
        z = layer({"input": x, "past": past})
        loss = tf.reduce_sum(z**2)
    assert np.abs(z - layer(x)).max() > 1e-2
    for name, gradient in tape.gradient(loss, past).items():
        assert np.abs(gradient).max() > 1e-4, name


@pytest.mark.parametrize(
    ("normalization", "mode"),
    [
        pytest.param("weight", "eager", marks=pytest.mark.slow),
        ("weight", "graph"),
        pytest.param("weight", "xla", marks=pytest.mark.slow),
        pytest.param(None, "graph", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_gradients_are_those_of_finite_differences(normalization, mode):
    layer = _layer(tolerance=1e-13, normalization=normalization)
    x, past = tf.constant(_inputs(length=4)), _past()
    layer({"input": x, "past": past})
    variables = layer.trainable_variables

    @tf.function(autograph=False)
    def loss_of(x, past):
        z = layer({"input": x, "past": past})
        return tf.reduce_sum(z * tf.cast(tf.reshape(tf.range(tf.size(z)), z.shape), z.dtype))

    def gradients(x, past):
        with tf.GradientTape() as tape:
            tape.watch([x, past])
            loss = loss_of(x, past)
        return tape.gradient(loss, [x, past, [variable.value for variable in variables]])

    d_x, d_past, d_theta = in_mode(gradients, mode)(x, past)
    random = np.random.default_rng(3)
    step = 1e-5

    def check(gradient, shape, loss_at):
        direction = random.normal(size=shape)
        difference = (loss_at(step * direction) - loss_at(-step * direction)) / (2 * step)
        np.testing.assert_allclose(np.sum(gradient * direction), difference, rtol=1e-6, atol=1e-6)

    check(d_x, x.shape, lambda move: loss_of(x + move, past))
    for name in past:
        moved = lambda move, name=name: loss_of(x, {**past, name: past[name] + move})  # noqa: E731
        check(d_past[name], past[name].shape, moved)
    for variable, gradient in zip(variables, d_theta, strict=True):
        at = variable.numpy()

        def loss_at(move, variable=variable, at=at):
            variable.assign(at + move)
            loss = loss_of(x, past)
            variable.assign(at)
            return loss

        check(gradient, at.shape, loss_at)


@pytest.mark.parametrize("mode", MODES)
def test_modes_agree(mode):
    layer = _layer()
    x = tf.constant(_inputs())
    expected = layer(x, return_solution=True)
    actual = in_mode(lambda x: layer(x, return_solution=True), mode)(x)
    assert actual.converged.numpy().all()
    np.testing.assert_array_equal(actual.steps, expected.steps)
    np.testing.assert_allclose(actual.z, expected.z, atol=1e-11)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "rates", fast([{"weight_dropout": 0.4}], [{"dropout": 0.4}, {"weight_dropout": 0.4}])
)
def test_dropout_is_constant_in_the_solve(rates, mode):
    layer = _layer(**rates)
    x = tf.constant(_inputs())
    layer(x, explicit_steps=1)  # builds it
    solve = in_mode(lambda: layer(x, training=True, return_solution=True), mode)
    noisy = solve()
    assert (noisy.residual.numpy() <= 1e-11).all()
    assert np.abs(noisy.z - layer(x)).max() > 1e-3
    assert np.abs(noisy.z - solve().z).max() > 1e-3  # another call, another mask


def test_dropout_is_one_mask_a_sample_at_all_positions():
    cell = _layer(kernel_size=1, dropout=0.5).cell
    cell.inject(tf.constant(_inputs()))
    h = tf.ones([64, LENGTH, WIDTH], tf.float64)
    masks = cell.hidden_dropout(h, training=True).numpy()
    np.testing.assert_array_equal(masks, np.repeat(masks[:, :1], LENGTH, axis=1))
    assert len(np.unique(masks[:, 0], axis=0)) > 8
    # With zero input, equal h at all positions and no memory, equal masks are visible in f.
    cell.injection.bias.assign(np.repeat([0.0, 0.0, 0.0, -1e4], WIDTH))
    x = cell.inject(tf.zeros([64, LENGTH, FEATURES], tf.float64))
    output = cell(h, x, training=True).numpy()
    np.testing.assert_allclose(output, np.repeat(output[:, :1], LENGTH, axis=1), atol=1e-13)
    assert len(np.unique(output[:, 0], axis=0)) > 8


def test_weight_dropout_is_one_mask_for_the_batch():
    layer = _layer(weight_dropout=0.5)
    x = tf.constant(np.repeat(_inputs(batch=1), 3, axis=0))
    z = layer(x, training=True).numpy()
    np.testing.assert_allclose(z, z[[0, 0, 0]], atol=1e-9)
    gradient = _kernel_gradient(layer, x)
    assert 0.3 < np.mean(gradient == 0) < 0.7


def _kernel_gradient(layer, x):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x, training=True))
    return tape.gradient(loss, layer.cell.recurrent.kernel.value).numpy()


def test_every_weight_gets_a_gradient():
    layer = _layer(kernel_size=3, normalization="weight")
    x = tf.constant(_inputs())
    layer(x, explicit_steps=1)  # builds it
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x) ** 2)
    weights = [variable.value for variable in layer.trainable_variables]
    for variable, gradient in zip(
        layer.trainable_variables, tape.gradient(loss, weights), strict=True
    ):
        assert np.abs(gradient).max() > 1e-6, variable.path


@pytest.mark.parametrize("normalization", [None, "weight"])
def test_starts_as_a_cell_with_nothing_to_solve(normalization):
    """W = 0: one application is the equilibrium, and W still learns."""
    layer = _layer(recurrent_scale=0.0, normalization=normalization)
    x = tf.constant(_inputs())
    np.testing.assert_allclose(layer(x), layer(x, explicit_steps=1), atol=1e-13)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x) ** 2)
    weight = layer.cell.recurrent.trainable_variables[-1]
    assert np.abs(tape.gradient(loss, weight.value)).max() > 1e-4


def test_masked_positions_stay_at_zero_and_change_no_other():
    layer = _layer()
    x = _inputs()
    mask = np.array([[True] * 4 + [False] * 3] * 2)
    solution = layer(x, mask=mask, return_solution=True)
    short = layer(x[:, :4], return_solution=True)
    np.testing.assert_array_equal(solution.z[:, 4:], np.zeros([2, 3, WIDTH]))
    np.testing.assert_allclose(solution.z[:, :4], short.z, atol=1e-9)
    np.testing.assert_array_equal(solution.steps, short.steps)
    segment = {"input": tf.constant(x), "past": _past()}
    np.testing.assert_array_equal(layer(segment, mask=mask)[:, 4:], np.zeros([2, 3, WIDTH]))


@pytest.mark.slow
def test_trains_with_the_jacobian_penalty():
    cell = TrellisCell(8, dropout=0.1, weight_dropout=0.1, normalization="weight")
    layer = tfdeq.DEQLayer(cell, "anderson", jacobian_penalty=0.1, name="deq")
    inputs = keras.Input([LENGTH, FEATURES])
    model = keras.Model(inputs, keras.layers.Dense(FEATURES)(layer(inputs)))
    model.compile(keras.optimizers.Adam(0.02), "mse")
    x = _inputs(batch=32, dtype="float32")
    before = np.roll(x, 2, axis=1) * (np.arange(LENGTH) >= 2)[None, :, None]
    history = model.fit(x, before, epochs=30, verbose=0).history
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert history["deq_converged"][-1] == 1.0


def test_saved_with_its_history(tmp_path):
    """A model of one segment, whose history is an input and whose memory for the next one is an output."""
    segment = {
        "input": keras.Input([LENGTH, FEATURES], name="input"),
        "past": {
            "c": keras.Input([WIDTH], name="c"),
            "h": keras.Input([1, WIDTH], name="h"),
            "input": keras.Input([1, FEATURES], name="before"),
        },
    }
    model = keras.Model(segment, _layer(dtype="float32", tolerance=1e-6)(segment))
    x = {"input": tf.constant(_inputs(dtype="float32"))}
    x["past"] = {name: tf.cast(w, tf.float32) for name, w in _past().items()}
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(x), model(x), atol=1e-5)


@pytest.mark.slow
def test_mixed_bfloat16_is_near_float32():
    exact = _layer(dtype="float32", tolerance=1e-5)
    half = _layer(dtype="mixed_bfloat16", tolerance=1e-2, weight_dropout=0.1)
    x = tf.constant(_inputs(dtype="float32"))
    expected = exact(x)
    half(x)
    half.set_weights([*exact.get_weights(), *half.get_weights()[len(exact.get_weights()) :]])
    solution = half(x, return_solution=True)
    assert half(x).dtype == tf.bfloat16
    assert solution.converged.numpy().all()
    # bfloat16 has 8 bits, and the solve stops at 1e-2.
    np.testing.assert_allclose(tf.cast(solution.z, tf.float32), expected, atol=0.03)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.cast(half(x, training=True), tf.float32) ** 2)
    weights = [variable.value for variable in half.trainable_variables]
    assert all(np.isfinite(gradient).all() for gradient in tape.gradient(loss, weights))
    past = half.cell.remember(solution.z, half.cell.inject(x))
    assert {w.dtype for w in past.values()} == {tf.bfloat16}


def test_config_round_trip():
    cell = TrellisCell(WIDTH, 3, 0.1, 0.2, 0.3, "weight", name="cell")
    config = cell.get_config()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(cell))
    assert again.get_config() == config
    names = ("kernel_size", "dropout", "weight_dropout", "recurrent_scale", "normalization")
    assert [config[name] for name in names] == [3, 0.1, 0.2, 0.3, "weight"]


@pytest.mark.parametrize("dtype", ["float64", "mixed_bfloat16"])
def test_dtype_given_to_the_cell_reaches_its_parts(dtype):
    for layer in TrellisCell(WIDTH, dtype=dtype)._flatten_layers(include_self=False):
        assert layer.dtype_policy.name == dtype, layer.name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width must be an integer of at least 1; received 0"),
        ({"kernel_size": 0}, "kernel_size must be an integer of at least 1; received 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\); received 1.0"),
        ({"weight_dropout": -0.1}, r"weight_dropout must be in \[0, 1\); received -0.1"),
        ({"recurrent_scale": -1}, "recurrent_scale must be a finite number >= 0; received -1"),
        ({"normalization": "batch"}, "must be None, 'weight' or 'spectral'; received 'batch'"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        TrellisCell(**{"width": 4, **settings})


def test_inputs_that_are_no_segments():
    cell = TrellisCell(WIDTH)
    with pytest.raises(ValueError, match=r"positions, features\]; received shape \(2, 3\)"):
        cell.inject(tf.zeros([2, 3]))
    with pytest.raises(ValueError, match=r"remember\(z, x\) returned.*'past': \['c'\]"):
        cell.inject({"input": tf.zeros([2, 3, 4]), "past": {"c": tf.zeros([2, WIDTH])}})
    with pytest.raises(ValueError, match=r"received \{'input': 'tensor'\}"):
        cell.inject({"input": tf.zeros([2, 3, 4])})
