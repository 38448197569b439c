"""Tests of tfdeq.cells.stacked: one solve gives the same result as two."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import tfdeq
from tests.support.cases import MODES, NoisyCell, PairCell, fast, in_mode
from tests.support.cases import DenseCell as PlainCell
from tfdeq.cells import DenseCell, TransformerCell, stacked, weight_tied

TIGHT = tfdeq.Anderson(max_steps=60, tolerance=1e-6)
EXACT = tfdeq.Broyden(max_steps=80, tolerance=1e-14)


def _floats(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@keras.saving.register_keras_serializable(package="tfdeq_tests")
class Reader(DenseCell):
    """A `DenseCell` that reads all tensors of an input nest."""

    def inject(self, x):
        return super().inject(ops.concatenate(keras.tree.flatten(x), axis=-1))

    def initial_state(self, x):
        return super().initial_state(keras.tree.flatten(x)[0])


def _assert_close(one, other, tolerance):
    for left, right in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True):
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


def _dense(units, dtype="float32", kind=DenseCell, **settings):
    return kind(units, contraction=0.7, dtype=dtype, **settings)


CASES = {
    "inject and initial_state": (lambda: (_dense(4), _dense(3)), _floats(5, 2)),
    "neither": (lambda: (PlainCell(4), PlainCell(4)), _floats(5, 4)),
    "nest under it": (
        lambda: (PairCell(4), _dense(3, kind=Reader)),
        {"value": _floats(3, 4), "token": np.array([0, 4, 2])},
    ),
    "stack under it": (
        lambda: (
            weight_tied([keras.layers.Dense(4, "tanh"), keras.layers.Dense(2)]),
            _dense(3, kind=Reader),
        ),
        _floats(5, 2),
    ),
    "transformers": (
        lambda: tuple(TransformerCell(8, 2, 5, recurrent_scale=0.2) for _ in range(2)),
        _floats(3, 5, 8),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", fast(["nest under it"], CASES))
def test_one_solve_is_two(name, mode):
    make, x = CASES[name]
    a, b = make()
    x = tf.nest.map_structure(tf.constant, x)
    together = tfdeq.DEQLayer(stacked(a, b), TIGHT)
    together(x)
    solution = in_mode(lambda x: together(x, return_solution=True), mode)(x)
    assert solution.converged.numpy().all()
    z_a = tfdeq.DEQLayer(a, TIGHT)(x)
    z_b = tfdeq.DEQLayer(b, TIGHT)(z_a)
    # Residuals of 1e-6 in both solves, divided by 1 − 0.7.
    _assert_close(solution.z, (z_a, z_b), 1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.slow
def test_gradients_are_those_of_two_solves(mode):
    a, b = _dense(4, "float64"), _dense(3, "float64")
    layers = [tfdeq.DEQLayer(cell, EXACT, dtype="float64") for cell in (a, b)]
    together = tfdeq.DEQLayer(stacked(a, b, dtype="float64"), EXACT, dtype="float64")
    x = tf.constant(_floats(4, 2, dtype="float64"))
    together(x), layers[1](layers[0](x))
    weights = [variable.value for variable in together.trainable_variables]
    assert len(weights) == 6

    def gradients(solve):
        with tf.GradientTape() as tape:
            tape.watch(x)
            z_a, z_b = solve()
            loss = tf.reduce_sum(tf.sin(3 * z_b)) + tf.reduce_sum(z_a**3)
        return z_a, z_b, *tape.gradient(loss, [*weights, x])

    def separately():
        z_a = layers[0](x)
        return z_a, layers[1](z_a)

    received = in_mode(lambda: gradients(lambda: together(x)), mode)()
    _assert_close(received, gradients(separately), 1e-11)


@pytest.mark.parametrize("nesting", fast(["first two"], ["first two", "last two"]))
@pytest.mark.slow
def test_three_cells(nesting, tmp_path):
    a, b = _dense(4), _dense(3)
    if nesting == "first two":
        c = _dense(2, kind=Reader)
        cell = stacked(stacked(a, b), c)
    else:
        c = _dense(2)
        cell = stacked(a, stacked(b, c))
    inputs = keras.Input((2,))
    model = keras.Model(inputs, tfdeq.DEQLayer(cell, TIGHT)(inputs))
    x = _floats(5, 2)
    received = model(x)
    z_a = tfdeq.DEQLayer(a, TIGHT)(x)
    z_b = tfdeq.DEQLayer(b, TIGHT)(z_a)
    z_c = tfdeq.DEQLayer(c, TIGHT)((z_a, z_b) if nesting == "first two" else z_b)
    _assert_close(received, (z_a, z_b, z_c), 1e-5)
    model.save(tmp_path / "model.keras")
    _assert_close(keras.saving.load_model(tmp_path / "model.keras")(x), received, 1e-6)


def test_functional_cells():
    def functional(units, width):
        z, x = keras.Input((units,)), keras.Input((width,))
        weights = keras.layers.Dense(units, kernel_initializer=keras.initializers.Orthogonal(0.5))
        return keras.Model([z, x], ops.tanh(weights(z) + keras.layers.Dense(units)(x)))

    a, b, x = functional(4, 2), functional(3, 4), _floats(5, 2)
    z_a, z_b = tfdeq.DEQLayer(stacked(a, b), TIGHT)(x)
    expected = tfdeq.DEQLayer(a, TIGHT)(x)
    _assert_close((z_a, z_b), (expected, tfdeq.DEQLayer(b, TIGHT)(expected)), 1e-5)


@pytest.mark.slow
def test_training_fits_and_advances_states_once():
    a, b = NoisyCell(4, rate=0.2), NoisyCell(4, rate=0.2)
    # Batch statistics mix the rows, on which Anderson, row by row, may stagnate above 1e-6.
    layer = tfdeq.DEQLayer(stacked(a, b), tfdeq.FixedPointIteration(100, 1e-5))
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(1)(layer(inputs)[1]))
    seeds = [cell.dropout.seed_generator.state for cell in (a, b)]
    before = [seed.numpy() for seed in seeds]
    assert layer(_floats(16, 4), training=True, return_solution=True).converged.numpy().all()
    for seed, old in zip(seeds, before, strict=True):
        assert (seed.numpy() - old).tolist() == [0, 1]
    model.compile(keras.optimizers.Adam(0.03), "mse")
    x = _floats(32, 4)
    loss = model.fit(x, x[:, :1], 16, epochs=10, verbose=0).history["loss"]
    assert loss[-1] < 0.7 * loss[0]


def test_mask_reaches_both():
    a, b = (TransformerCell(8, 2, 5, recurrent_scale=0.2) for _ in range(2))
    layer = tfdeq.DEQLayer(stacked(a, b), TIGHT)
    mask = np.array([[True] * 5, [True] * 3 + [False] * 2])
    for z in layer(_floats(2, 5, 8), mask=mask):
        np.testing.assert_array_equal(z[1, 3:], np.zeros([2, 8]))
        assert np.abs(z[1, :3]).min() > 0


@pytest.mark.parametrize("policy", fast(["float64"], ["mixed_bfloat16", "float64"]))
def test_dtype_policies(policy):
    keras.config.set_dtype_policy(policy)
    tolerance = 2e-2 if policy == "mixed_bfloat16" else 1e-10
    solver = tfdeq.Anderson(max_steps=60, tolerance=tolerance)
    a, b, x = DenseCell(4, contraction=0.7), DenseCell(3, contraction=0.7), _floats(5, 2)
    solution = tfdeq.DEQLayer(stacked(a, b), solver)(x, return_solution=True)
    assert solution.converged.numpy().all()
    z_a = tfdeq.DEQLayer(a, solver)(x)
    expected = z_a, tfdeq.DEQLayer(b, solver)(z_a)
    assert solution.z[1].dtype == ("float64" if policy == "float64" else "float32")
    as_float = lambda z: [tf.cast(leaf, "float64") for leaf in z]  # noqa: E731
    # Two residuals at the tolerance, divided by 1 − 0.7.
    _assert_close(as_float(solution.z), as_float(expected), 5 * tolerance)


def test_errors():
    cell = DenseCell(3, name="twice")
    with pytest.raises(ValueError, match="must be two cells; received 'twice' twice"):
        stacked(cell, cell)
    with pytest.raises(ValueError, match="b must be a Keras layer with call"):
        stacked(cell, keras.ops.tanh)
    with pytest.raises(ValueError, match="a must be .* received <Sequential"):
        stacked(keras.Sequential([keras.layers.Dense(3)]), cell)
