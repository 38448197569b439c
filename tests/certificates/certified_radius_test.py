"""Tests of tfdeq.certified_radius: attacks, the formula with matrices, and refused models."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from benchmarks.images.certified_accuracy import Attack
from tests.cells.monotone.circular_test import matrix_of
from tests.cells.monotone.multiscale_convolution_test import recurrent_matrix
from tests.support.cases import fast


def _moons(count, seed):
    """Returns points on two interleaved half circles, and their half circles."""
    random = np.random.default_rng(seed)
    angle, label = np.pi * random.random(count), random.integers(0, 2, count)
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    lower = np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], axis=1)
    points = np.where(label[:, None] == 1, lower, upper)
    return (points + random.normal(0, 0.08, points.shape)).astype("float32"), label


def _untrained():
    keras.utils.set_random_seed(0)
    cell = tfdeq.cells.MonotoneDense(16, monotonicity=1.0)
    layer = tfdeq.DEQLayer(cell, tfdeq.PeacemanRachford(tolerance=1e-4))
    return keras.Sequential([keras.Input([2]), layer, keras.layers.Dense(2)])


@functools.cache
def _trained():
    model = _untrained()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.03), loss, metrics=["accuracy"])
    model.fit(*_moons(1000, 0), 250, epochs=25, verbose=0)
    return model


def _attacked(model, x, label, radius, steps=100, restarts=3):
    """Whether projected gradient steps within the radius change the answer, [B]."""
    copies = [np.repeat(part, restarts, axis=0) for part in (x, label, radius.astype("float32"))]
    start, label, radius = map(tf.constant, copies)
    random = np.random.default_rng(0)
    shift = random.normal(size=start.shape).astype("float32")
    shift *= (radius / np.linalg.norm(shift, axis=1))[:, None] * random.random((len(shift), 1))

    @tf.function(autograph=False)
    def stepped(shift):
        with tf.GradientTape() as tape:
            tape.watch(shift)
            logits = model(start + shift)
            own, other = (tf.gather(logits, one, batch_dims=1) for one in (label, 1 - label))
            margin = own - other
        slope = tape.gradient(margin, shift)
        slope /= tf.norm(slope, axis=1, keepdims=True) + 1e-20
        shift -= 0.1 * radius[:, None] * slope
        return shift * tf.minimum(1.0, radius / tf.norm(shift, axis=1))[:, None], margin < 0

    found = np.zeros(len(start), bool)
    shift = tf.constant(shift, tf.float32)
    for _ in range(steps):
        shift, changed = stepped(shift)
        found |= changed.numpy()
    return found.reshape(-1, restarts).any(axis=1)


@pytest.mark.slow
def test_attacks_find_nothing_inside_and_something_outside():
    model = _trained()
    x, label = _moons(50, seed=1)
    with tfdeq.SolveScope(tolerance=1e-6):
        radius = tfdeq.certified_radius(model, x).numpy()
        answer = np.argmax(model(x), axis=1)
        assert np.mean(answer == label) > 0.95
        assert (radius > 0).all()
        assert np.median(radius) > 0.1
        # Both in one batch: within the radius, and within three times the radius.
        both = np.tile(x, (2, 1)), np.tile(answer, 2), np.concatenate([radius, 3 * radius])
        inside, outside = np.split(_attacked(model, *both), 2)
    assert not inside.any()
    assert outside.mean() > 0.5


@pytest.mark.slow
def test_no_neighbour_on_a_circle_has_another_answer():
    """In all directions of a two-dimensional input, and with the model's own rounding."""
    model = _trained()
    x, _ = _moons(50, seed=2)
    radius = tfdeq.certified_radius(model, x).numpy()
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    for share, same in ((1, True), (3, False)):
        near = x[:, None] + share * radius[:, None, None] * circle
        near = near.reshape(-1, 2).astype("float32")
        answers = np.argmax(model.predict(near, 4500, verbose=0), axis=1).reshape(50, 90)
        assert (answers == np.argmax(model(x), axis=1)[:, None]).all() == same


@pytest.mark.slow
def test_softmax_saving_and_graphs_change_nothing(tmp_path):
    model = _trained()
    x, _ = _moons(20, seed=3)
    expected = tfdeq.certified_radius(model, x)
    inputs = keras.Input([2])
    outputs = keras.layers.Softmax()(model.layers[1](model.layers[0](inputs)))
    again = keras.Model(inputs, outputs)
    np.testing.assert_allclose(tfdeq.certified_radius(again, x), expected, rtol=1e-6)
    again.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    compiled = tf.function(
        lambda x: tfdeq.certified_radius(loaded, x),
        input_signature=[tf.TensorSpec([None, 2])],
        autograph=False,
    )
    # The deduction for the residual, a hundredth of the radius, is accurate to about 1e-3 in
    # float32.
    np.testing.assert_allclose(compiled(x), expected, rtol=1e-4)
    assert compiled(tf.zeros([0, 2])).shape == (0,)
    archive = keras.export.ExportArchive()
    archive.track(loaded)
    archive.add_endpoint("certified_radius", compiled)
    archive.write_out(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(served.certified_radius(x), expected, rtol=1e-4)


def test_a_solve_that_is_not_done_certifies_nothing():
    model = _untrained()
    x, _ = _moons(20, seed=3)
    tight = tfdeq.certified_radius(model, x).numpy()
    with tfdeq.SolveScope(max_steps=1):
        np.testing.assert_array_equal(tfdeq.certified_radius(model, x), np.zeros(20))
    with tfdeq.SolveScope(tolerance=1e-2):
        rough = tfdeq.certified_radius(model, x).numpy()
    # The error of the solve is deducted: inaccurate solves certify less, never more.
    assert (rough <= tight * (1 + 1e-5)).all()
    assert (rough < 0.99 * tight).any()


def test_nan_certifies_nothing():
    x, _ = _moons(5, seed=3)
    x[2] = np.nan
    radius = tfdeq.certified_radius(_untrained(), x).numpy()
    assert (radius > 0).tolist() == [True, True, False, True, True]


def test_of_a_convolution_is_the_formula_by_matrices():
    """With a rescaling before, and pooling and a dense layer after the equilibrium."""
    keras.utils.set_random_seed(0)
    cell = tfdeq.cells.MonotoneConvolution(3, monotonicity=0.5, recurrent_scale=1.0)
    layer = tfdeq.DEQLayer(cell, tfdeq.PeacemanRachford(2000, 1e-5))
    model = keras.Sequential(
        [
            keras.Input([4, 6, 2]),
            keras.layers.Rescaling(0.5, offset=-1.0),
            layer,
            keras.layers.AveragePooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(3, bias_initializer="normal"),
        ]
    )
    x = np.random.default_rng(0).normal(size=(8, 4, 6, 2)).astype("float32")
    w = matrix_of(cell.recurrent_kernel().numpy().astype("float64"), 4, 6)
    u = matrix_of(cell.injection.kernel.numpy().astype("float64"), 4, 6)
    symmetric = np.eye(72) - (w + w.T) / 2
    pool = np.zeros((4, 6, 3, 2, 3, 3))
    for row, column, channel in np.ndindex(4, 6, 3):
        pool[row, column, channel, row // 2, column // 2, channel] = 0.25
    rows = (pool.reshape(72, 18) @ model.layers[-1].kernel.numpy()).T
    logits = model(x).numpy()
    expected = 2 * _radius_by_matrices(logits, rows, symmetric, u, monotonicity=0.5)
    found = tfdeq.certified_radius(model, x).numpy()
    # The error of the solves is deducted, and the logits here are float32.
    assert (found <= np.array(expected) * (1 + 1e-5) + 1e-6).all()
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3)


def _radius_by_matrices(logits, rows, symmetric, u, monotonicity):
    """Returns [B]; symmetric part [D, D] and input u [n, D] of the cell, rows [K, D] of the readout."""
    factor, inverse = np.linalg.cholesky(symmetric), np.linalg.inv(symmetric)
    norm = np.linalg.norm(np.linalg.solve(factor, u.T), 2)

    def slope(row):
        length = np.linalg.norm(np.linalg.solve(factor, row))
        found = (np.linalg.norm(u @ inverse @ row) + length * norm) / 2
        published = np.linalg.norm(row) * np.linalg.norm(u, 2) / monotonicity
        assert found <= published * (1 + 1e-12)
        return found

    radius = []
    for sample in logits:
        answer = sample.argmax()
        others = [j for j in range(len(rows)) if j != answer]
        radius.append(
            min((sample[answer] - sample[j]) / slope(rows[answer] - rows[j]) for j in others)
        )
    return np.array(radius)


def _multiscale(filters=(2, 3), shape=(4, 6, 2), monotonicity=0.5, recurrent_scale=1.0):
    keras.utils.set_random_seed(0)
    cell = tfdeq.cells.MonotoneMultiscaleConvolution(
        filters, monotonicity=monotonicity, recurrent_scale=recurrent_scale
    )
    layer = tfdeq.DEQLayer(cell, tfdeq.PeacemanRachford(2000, 1e-5))
    head = [tfdeq.models.BranchMeans(2), keras.layers.Dense(3, bias_initializer="normal")]
    return _model(keras.layers.Rescaling(0.5), layer, *head, shape=shape)


def test_of_branches_is_the_formula_by_matrices():
    model = _multiscale()
    cell = model.layers[1].cell
    x = np.random.default_rng(0).normal(size=(8, 4, 6, 2)).astype("float32")
    w = recurrent_matrix(cell, 4, 6).astype("float64")
    u = np.zeros((48, 66))
    u[:, :48] = matrix_of(cell.injection.kernel.numpy().astype("float64"), 4, 6)
    # Windows of 2 × 2 in the first branch, and of one place in the second.
    pool = np.zeros((4, 6, 2, 2, 3, 2))
    for row, column, channel in np.ndindex(4, 6, 2):
        pool[row, column, channel, row // 2, column // 2, channel] = 0.25
    means = np.zeros((66, 30))
    means[:48, :12], means[48:, 12:] = pool.reshape(48, 12), np.eye(18)
    rows = (means @ model.layers[-1].kernel.numpy()).T
    symmetric = np.eye(66) - (w + w.T) / 2
    logits = model(x).numpy()
    expected = 2 * _radius_by_matrices(logits, rows, symmetric, u, monotonicity=0.5)
    found = tf.function(lambda x: tfdeq.certified_radius(model, x), autograph=False)(x).numpy()
    # As above.
    assert (found <= expected * (1 + 1e-5) + 1e-6).all()
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("count", fast([2], [2, 3]))
def test_attacks_of_branches_find_nothing_inside_and_something_outside(count):
    model = _multiscale((2, 2, 2)[:count], (4, 8, 2), monotonicity=1.0, recurrent_scale=0.5)
    x = np.random.default_rng(0).normal(size=(20, 4, 8, 2)).astype("float32")
    radius = tfdeq.certified_radius(model, x).numpy()
    answers = np.argmax(model(x), axis=1)
    assert (radius > 0).all()
    # Both in one batch: within the radius, and within eight times the radius.
    both = np.tile(x, (2, 1, 1, 1)), np.tile(answers, 2), np.concatenate([radius, 8 * radius])
    inside, outside = np.split(Attack(model, steps=10, restarts=1).succeeds(*both), 2)
    assert not inside.any()
    assert outside.mean() > 0.5


def test_of_branches_nothing_is_certified_of_a_solve_that_is_not_done():
    model = _multiscale()
    x = np.random.default_rng(0).normal(size=(5, 4, 6, 2)).astype("float32")
    certify = tf.function(lambda x: tfdeq.certified_radius(model, x), autograph=False)
    broken = x.copy()
    broken[2] = np.nan
    assert (certify(broken).numpy() > 0).tolist() == [True, True, False, True, True]
    with tfdeq.SolveScope(max_steps=1):
        np.testing.assert_array_equal(tfdeq.certified_radius(model, x), np.zeros(5))


def test_by_a_given_constant():
    """logits = x K: the radius is exact for two classes whose columns are opposite."""
    kernel = tf.constant([[1.0, -1.0], [2.0, -2.0]])
    x = tf.constant([[1.0, 0.0], [-1.0, 1.0], [0.0, 0.0]])
    norm = float(np.linalg.norm(kernel, 2))
    radius = tfdeq.certified_radius(lambda x: x @ kernel, x, lipschitz=norm)
    exact = np.abs(x @ kernel)[:, 0] / np.sqrt(5)
    np.testing.assert_allclose(radius, exact, rtol=1e-5)
    with pytest.raises(
        ValueError, match="lipschitz must be a finite number greater than 0; received 0"
    ):
        tfdeq.certified_radius(lambda x: x, x, lipschitz=0)


def _model(*layers, shape=(2,)):
    return keras.Sequential([keras.Input(shape), *layers])


def _monotone():
    return tfdeq.DEQLayer(tfdeq.cells.MonotoneDense(4), "peaceman_rachford")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _model(tfdeq.DEQLayer(tfdeq.cells.DenseCell(4))), r"cells are \['DenseCell'\]"),
        (lambda: _model(keras.layers.Dense(2)), r"wants one DEQLayer .* cells are \[\]"),
        (
            lambda: _model(keras.layers.LayerNormalization(), _monotone()),
            "known of LayerNormalization",
        ),
        (lambda: _model(keras.layers.Dense(3, "gelu"), _monotone()), "activation 'gelu'"),
        (
            lambda: _model(_monotone(), keras.layers.Dense(2, "relu")),
            "wants linear layers .* Dense",
        ),
        (lambda: _model(_monotone(), keras.layers.Dense(1)), r"shape \(1, 1\)"),
        (lambda: tf.identity, "takes a keras.Model of layers one after another"),
    ],
)
def test_models_without_a_certificate_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        tfdeq.certified_radius(make(), tf.ones([3, 2]))


def test_a_model_that_branches_is_refused():
    inputs = keras.Input([4])
    z = _monotone()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Add()([z, inputs])))
    with pytest.raises(ValueError, match=r"'add.*' has 2 inputs"):
        tfdeq.certified_radius(model, tf.ones([3, 4]))


@pytest.mark.parametrize("chosen", [slice(1), slice(None, None, -1)])
def test_a_model_that_reads_branches_otherwise_is_refused(chosen):
    """One of them, or all in another order."""
    inputs = keras.Input([4, 4, 1])
    z = tfdeq.DEQLayer(tfdeq.cells.MonotoneMultiscaleConvolution((2, 2)))(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(tfdeq.models.BranchMeans(2)(z[chosen])))
    with pytest.raises(ValueError, match="inputs, not all outputs of one other layer"):
        tfdeq.certified_radius(model, tf.ones([3, 4, 4, 1]))
