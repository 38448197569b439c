"""Tests of tfdeq.layer: single calls. `layer_fit_test.py` trains, saves and exports."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import tfdeq
from tests.support.cases import MODES, DenseCell, PairCell, fast, in_mode

TIGHT = tfdeq.Broyden(max_steps=50, tolerance=1e-6)
EXACT = tfdeq.Broyden(max_steps=60, tolerance=1e-13)
UNITS = 4


def _x(batch=6, dtype="float32", seed=0):
    return np.random.default_rng(seed).normal(size=(batch, UNITS)).astype(dtype)


def _relative_residual(f_z, z):
    return np.linalg.norm(f_z - z, axis=-1) / np.linalg.norm(f_z, axis=-1)


class MaskedCell(DenseCell):
    """Zero outside the mask."""

    supports_masking = True

    def call(self, z, x, mask=None):
        y = super().call(z, x)
        return y if mask is None else y * ops.cast(mask, y.dtype)[..., None]


# --- the equilibrium --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_output_is_the_equilibrium_of_the_cell(mode):
    layer = tfdeq.DEQLayer(DenseCell(UNITS), TIGHT)
    x = tf.constant(_x())
    layer(x, explicit_steps=1)  # builds it
    solution = in_mode(lambda x: layer(x, return_solution=True), mode)(x)
    assert solution.converged.numpy().all()
    residual = _relative_residual(layer.cell(solution.z, x).numpy(), solution.z.numpy())
    np.testing.assert_allclose(residual, solution.residual, atol=3e-7)
    assert (residual < 1.3e-6).all()
    np.testing.assert_allclose(layer(x), solution.z, atol=1e-6)


def test_call_overrides_start_tolerance_and_budget():
    layer = tfdeq.DEQLayer(DenseCell(UNITS), "fixed_point_iteration")
    x = _x(batch=3)
    exact = layer(x, tolerance=1e-6, return_solution=True)
    again = layer(x, z0=exact.z, return_solution=True)
    assert again.steps.numpy().tolist() == [1, 1, 1]
    mixed = layer(x, tolerance=[1e-1, 1e-6, 1e-6], max_steps=[30, 30, 2], return_solution=True)
    assert mixed.status.numpy().tolist() == [0, 0, int(tfdeq.Status.MAX_STEPS)]
    assert mixed.steps[0] < mixed.steps[1]
    assert mixed.steps[2] == 2


@pytest.mark.parametrize("mode", MODES)
def test_weight_gradients_against_finite_differences(mode):
    layer = tfdeq.DEQLayer(DenseCell(UNITS, dtype="float64"), EXACT, dtype="float64")
    x = tf.constant(_x(3, "float64"))
    layer(x, explicit_steps=1)  # builds it
    kernel, bias = layer.trainable_variables
    random = np.random.default_rng(1)
    direction = [random.normal(size=kernel.shape), random.normal(size=bias.shape)]
    x_direction = random.normal(size=x.shape)

    @tf.function(autograph=False, jit_compile=mode == "xla")
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.sin(layer(x, training=True)))
        weights = [variable.value for variable in layer.trainable_variables]
        return loss, tape.gradient(loss, [*weights, x])

    def loss(t):
        base = [kernel.numpy(), bias.numpy()]
        for variable, start, along in zip((kernel, bias), base, direction, strict=True):
            variable.assign(start + t * along)
        value = float(tf.reduce_sum(tf.sin(layer(x + t * x_direction))))
        for variable, start in zip((kernel, bias), base, strict=True):
            variable.assign(start)
        return value

    if mode == "eager":
        gradient = gradient.python_function
    _, gradients = gradient(x)
    received = sum(
        float(tf.reduce_sum(one * along))
        for one, along in zip(gradients, [*direction, x_direction], strict=True)
    )
    h = 1e-4
    difference = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h)
    # h⁴ of truncation and 1e-12 / h of rounding.
    np.testing.assert_allclose(received, difference, rtol=1e-7)


# --- dtypes, masks, nests ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "dtype", "tolerance"),
    fast(
        [("mixed_bfloat16", "bfloat16", 2e-2), ("float64", "float64", 1e-9)],
        [
            ("mixed_bfloat16", "bfloat16", 2e-2),
            ("mixed_float16", "float16", 2e-3),
            ("float64", "float64", 1e-9),
        ],
    ),
)
def test_dtype_policies(policy, dtype, tolerance):
    keras.config.set_dtype_policy(policy)
    layer = tfdeq.DEQLayer(DenseCell(UNITS), tfdeq.Anderson(tolerance=tolerance))
    x = _x()
    with tf.GradientTape() as tape:
        solution = layer(x, training=True, return_solution=True)
        loss = tf.reduce_sum(tf.cast(solution.z, tf.float32))
    assert layer(x).dtype == dtype
    assert solution.z.dtype == ("float64" if policy == "float64" else "float32")
    assert solution.converged.numpy().all()
    weights = [variable.value for variable in layer.trainable_variables]
    for variable, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
        assert gradient.dtype == variable.dtype == ("float64" if policy == "float64" else "float32")
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 0


@pytest.mark.parametrize("penalty", fast([1.0], [0.0, 1.0]))
def test_mask_reaches_the_cell(penalty):
    layer = tfdeq.DEQLayer(MaskedCell(UNITS), TIGHT, jacobian_penalty=penalty)
    inputs = keras.Input((5, UNITS))
    model = keras.Model(inputs, layer(keras.layers.Masking()(inputs)))
    x = np.random.default_rng(0).normal(size=(8, 5, UNITS)).astype("float32")
    x[:, 3:] = 0.0
    z = model(x, training=True)
    np.testing.assert_array_equal(z[:, 3:], np.zeros([8, 2, UNITS]))
    assert np.abs(z[:, :3]).min() > 0
    assert z._keras_mask.numpy().tolist() == [[True] * 3 + [False] * 2] * 8


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"max_steps": tf.constant(50)}, marks=pytest.mark.slow),
        pytest.param({"tolerance": tf.fill([8], 1e-6)}, marks=pytest.mark.slow),
        {"z0": None},
    ],
)
def test_mask_reaches_the_cell_beside_other_tensors(settings):
    layer = tfdeq.DEQLayer(MaskedCell(UNITS), TIGHT)
    x = np.random.default_rng(0).normal(size=(8, 5, UNITS)).astype("float32")
    x[:, 3:] = 0.0
    masked = keras.layers.Masking()(tf.constant(x))
    settings = {"z0": tf.ones(x.shape)} if "z0" in settings else settings
    z = layer(masked, **settings)
    np.testing.assert_array_equal(z[:, 3:], np.zeros([8, 2, UNITS]))
    np.testing.assert_allclose(z, layer(masked), atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_dict_state_and_integer_input(mode):
    layer = tfdeq.DEQLayer(PairCell(UNITS), TIGHT)
    x = {"value": tf.constant(_x(3)), "token": tf.constant([0, 4, 2])}
    layer(x, explicit_steps=1)  # builds it

    @tf.function(autograph=False, jit_compile=mode == "xla")
    def solve(x):
        with tf.GradientTape() as tape:
            solution = layer(x, training=True, return_solution=True)
            loss = tf.reduce_sum(solution.z["first"])
        return solution, tape.gradient(loss, layer.cell.embedding.embeddings.value)

    solution, gradient = (solve.python_function if mode == "eager" else solve)(x)
    assert solution.converged.numpy().all()
    f_z = layer.cell(solution.z, x)
    for key in ("first", "second"):
        np.testing.assert_allclose(f_z[key], solution.z[key], atol=3e-6)
    used = np.abs(tf.convert_to_tensor(gradient)).max(axis=1) > 0
    assert used.tolist() == [True, False, True, False, True]


# --- the penalty ------------------------------------------------------------------------------------


def _penalised(**settings):
    layer = tfdeq.DEQLayer(
        DenseCell(UNITS, gain=0.8, dtype="float64"),
        EXACT,
        jacobian_penalty=0.5,
        jacobian_penalty_fraction=1.0,
        dtype="float64",
        **settings,
    )
    x = tf.constant(_x(4, "float64"))
    layer(x, explicit_steps=1)  # builds it
    # Not a multiple of an orthogonal matrix, whose products with signs all have the same length.
    kernel = layer.cell.dense.kernel
    kernel.assign(0.3 * np.random.default_rng(9).normal(size=kernel.shape))
    return layer, x


@pytest.mark.slow  # regularizers_test.py has it for the penalty itself
def test_penalty_is_unbiased_and_fresh():
    layer, x = _penalised()
    z = layer(x)
    with tf.GradientTape() as tape:
        tape.watch(z)
        f_z = layer.cell(z, x)
    exact = 0.5 * float(tf.reduce_sum(tape.batch_jacobian(f_z, z) ** 2)) / (4 * UNITS)

    @tf.function(autograph=False)
    def penalty():
        layer(x, training=True)
        return tf.add_n(layer.losses)

    values = np.array([float(penalty()) for _ in range(400)])
    # 4 · 4 signs, up to one sign per sample, give at most 2^12 values, so about 20 of 400 repeat.
    assert len(set(values)) > 350
    assert abs(values.mean() - exact) < 4 * values.std() / np.sqrt(400)


def test_penalty_only_in_training():
    layer, x = _penalised()
    layer(x)
    assert layer.losses == []
    layer(x, training=True)
    assert len(layer.losses) == 1


def test_gradient_of_the_penalty_against_finite_differences():
    """The penalty as a function of the weights, at the fixed equilibrium that was found."""
    layer, x = _penalised(convergence_metrics=False)
    kernel = layer.cell.dense.kernel
    seed = layer._seed_generator.state
    start = seed.numpy()
    with tf.GradientTape() as tape:
        z = layer(x, training=True)
        penalty = layer.losses[0]
    gradient = tape.gradient(penalty, kernel.value).numpy()
    base, h = kernel.numpy(), 1e-5
    direction = np.random.default_rng(3).normal(size=base.shape)
    values = []
    for sign in (1, -1):
        kernel.assign(base + sign * h * direction)
        seed.assign(start)
        noise_seed = layer._seed_generator.next()
        f = lambda z: layer.cell(z, x)  # noqa: E731
        values.append(0.5 * float(tfdeq.jacobian_penalty(f, z, seed=noise_seed)))
    difference = (values[0] - values[1]) / (2 * h)
    np.testing.assert_allclose((gradient * direction).sum(), difference, rtol=1e-7)


# --- metrics ----------------------------------------------------------------------------------------


def _counts(layer):
    return [float(metric.count) for metric in layer._convergence]


def test_metrics_count_training_calls_only():
    layer = tfdeq.DEQLayer(DenseCell(UNITS))
    x = _x()
    layer(x)
    assert _counts(layer) == [0.0] * 6
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x, training=True))
    assert _counts(layer) == [6.0] * 3 + [0.0] * 3
    tape.gradient(loss, [variable.value for variable in layer.trainable_variables])
    assert _counts(layer) == [6.0] * 6


def test_metrics_can_be_left_out():
    layer = tfdeq.DEQLayer(DenseCell(UNITS), convergence_metrics=False)
    layer(_x(), training=True)
    assert layer.metrics_variables == []


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"cell": np.tanh}, ValueError, r"cell must be a Keras layer.*received <ufunc 'tanh'>"),
        ({"solver": "newton"}, ValueError, "Unknown solver 'newton'. Known solvers: .*broyden"),
        ({"adjoint": "magic"}, ValueError, "Unknown adjoint 'magic'. Known adjoints: .*implicit"),
        (
            {"jacobian_penalty": -1.0},
            ValueError,
            r"jacobian_penalty must be a finite number >= 0, or .auto.; received -1.0",
        ),
        (
            {"jacobian_penalty": float("nan")},
            ValueError,
            "jacobian_penalty must be a finite number >= 0.*nan",
        ),
        ({"jacobian_penalty_fraction": 0}, ValueError, r"must be in \(0, 1\]; received 0"),
        ({"jacobian_penalty_fraction": 2}, ValueError, r"must be in \(0, 1\]; received 2"),
        ({"threshold": 3}, (TypeError, ValueError), "threshold"),
    ],
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        tfdeq.DEQLayer(**{"cell": DenseCell(UNITS), **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerance": 0.0}, "tolerance must be greater than 0"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"explicit_steps": -1}, "explicit_steps must be an integer of at least 0; received -1"),
    ],
)
def test_bad_call_settings(settings, message):
    layer = tfdeq.DEQLayer(DenseCell(UNITS))
    with pytest.raises(ValueError, match=message):
        layer(_x(), **settings)


@pytest.mark.parametrize("value", [-1, 1.5])
def test_power_steps_out_of_range_are_refused_at_construction(value):
    with pytest.raises(ValueError, match="jacobian_penalty_power_steps must be an integer"):
        tfdeq.DEQLayer(DenseCell(4), jacobian_penalty_power_steps=value)


# --- iterates ---------------------------------------------------------------------------------------


def test_a_loss_may_be_put_on_iterates():
    layer = tfdeq.DEQLayer(DenseCell(4), tfdeq.Anderson(tolerance=1e-6))
    x = tf.ones([3, 4])
    solution = layer(x, iterates=(2, 20), return_solution=True)
    early, late = solution.iterates
    np.testing.assert_allclose(early, layer(x, max_steps=2), rtol=1e-6)
    np.testing.assert_allclose(late, solution.z, rtol=1e-6)
    inputs = keras.Input([4])
    outputs = layer(inputs, iterates=(2, 20), trace=True, return_solution=True)
    model = keras.Model(inputs, [outputs.residual, *outputs.iterates, outputs.trace])
    residual, *states, trace = model(x)
    np.testing.assert_allclose(states[0], early, rtol=1e-6)
    np.testing.assert_array_equal(np.nanmin(trace, axis=1), residual)
    with pytest.raises(ValueError, match="explicit_steps makes none"):
        layer(x, iterates=(2,), explicit_steps=3, return_solution=True)
    with pytest.raises(ValueError, match="iterates and trace are part of the Solution"):
        layer(x, iterates=(2,))
