"""Properties of all solvers and adjoints in the registries, and of the cells and models listed here.

A new solver or adjoint is tested here automatically; a new cell or model needs one line in CELLS or
MODELS.
"""

import dataclasses
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import (
    EVERY_MODE,
    GENERAL,
    DenseCell,
    NoisyCell,
    PairCell,
    exact_solvers,
    fast,
    in_mode,
    linear,
    linear_case,
    tanh_cell,
)
from tfdeq import adjoints, solvers
from tfdeq.cells import TransformerCell, TrellisCell
from tfdeq.models import LanguageModel, Reasoner
from tfdeq.serving import convert
from tfdeq.serving.edge.interpreter import Interpreter
from tfdeq.serving.signatures.signature import CONVERGENCE
from tfdeq.serving.verification import checks

SOLVERS = exact_solvers()


def _floats(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


# Add one line for a new cell: how to make it, and an input for it.
CELLS = {
    "dense": (lambda: DenseCell(4), _floats(3, 4)),
    "noisy": (lambda: NoisyCell(4), _floats(3, 4)),
    "pair": (lambda: PairCell(4), {"value": _floats(3, 4), "token": np.array([0, 4, 2])}),
    "dense cell": (
        lambda: tfdeq.cells.DenseCell(4, contraction=0.8, normalization="weight"),
        _floats(3, 2),
    ),
    "transformer": (
        lambda: TransformerCell(8, 2, 5, dropout=0.1, recurrent_scale=0.2),
        _floats(3, 5, 8),
    ),
    "transformer, post-norm": (
        lambda: TransformerCell(8, 2, 5, recurrent_scale=0.2, norm="post", query_key_norm=True),
        _floats(3, 5, 8),
    ),
    "transformer, weight norm": (
        lambda: TransformerCell(8, 2, 5, recurrent_scale=0.2, normalization="weight"),
        _floats(3, 5, 8),
    ),
    "transformer, spectral norm": (
        lambda: TransformerCell(8, 2, 5, recurrent_scale=0.2, normalization="spectral"),
        _floats(3, 5, 8),
    ),
    "trellis": (
        lambda: TrellisCell(6, dropout=0.1, weight_dropout=0.1, recurrent_scale=0.2),
        _floats(3, 5, 4),
    ),
    "trellis, weight norm": (
        lambda: TrellisCell(6, 3, recurrent_scale=0.2, normalization="weight"),
        _floats(3, 5, 4),
    ),
    "recall convolution": (
        lambda: tfdeq.cells.RecallConvolution(4, rank=1, recurrent_scale=0.2),
        _floats(3, 5, 4),
    ),
    "recall convolution of a grid": (
        lambda: tfdeq.cells.RecallConvolution(4, recurrent_scale=0.2),
        _floats(3, 3, 2, 4),
    ),
    "group attention": (
        lambda: tfdeq.cells.GroupAttention(6, 3, recurrent_scale=0.2),
        _floats(3, 4, 4, 6),
    ),
    "monotone dense": (
        lambda: tfdeq.cells.MonotoneDense(4, monotonicity=0.5, recurrent_scale=0.3),
        _floats(3, 2),
    ),
    "Lipschitz bounded": (
        lambda: tfdeq.cells.LipschitzBounded(4, recurrent_scale=0.3),
        _floats(3, 2),
    ),
    "monotone convolution": (
        lambda: tfdeq.cells.MonotoneConvolution(4, monotonicity=0.5, recurrent_scale=0.3),
        _floats(3, 3, 4, 2),
    ),
    "monotone multiscale convolution": (
        lambda: tfdeq.cells.MonotoneMultiscaleConvolution(
            (3, 4), monotonicity=0.5, recurrent_scale=0.3
        ),
        _floats(3, 4, 6, 2),
    ),
    "multiscale": (
        lambda: tfdeq.cells.MultiscaleCell([4, 6], 2, groups=2, skip="input", recurrent_scale=0.1),
        _floats(3, 4, 5, 4),
    ),
    "token mixing": (
        lambda: tfdeq.cells.TokenMixing(4, places=6, recurrent_scale=0.2),
        _floats(3, 3, 2, 4),
    ),
    "composed": (
        lambda: tfdeq.cells.ComposedCell(
            [tfdeq.cells.RecallConvolution(4, rank=1, recurrent_scale=0.2) for _ in range(2)]
        ),
        _floats(3, 5, 4),
    ),
    "nested recursion": (
        lambda: tfdeq.cells.NestedRecursion(
            tfdeq.cells.RecallConvolution(4, rank=1, recurrent_scale=0.2), inner_steps=2
        ),
        _floats(3, 5, 4),
    ),
    "weight-tied stack": (
        lambda: tfdeq.cells.weight_tied(
            [
                keras.layers.Conv1D(4, 3, padding="same", activation="relu"),
                keras.layers.LayerNormalization(),
                keras.layers.Dropout(0.2),
                keras.layers.Flatten(),
                keras.layers.Dense(3),
            ]
        ),
        _floats(3, 5, 2),
    ),
    "stacked": (
        lambda: tfdeq.cells.stacked(
            tfdeq.cells.DenseCell(4, contraction=0.8), tfdeq.cells.DenseCell(3, contraction=0.8)
        ),
        _floats(3, 2),
    ),
}
# The cells in the fast run; each cell also has its own tests in its file.
FEW = ("dense", "transformer", "trellis")
# Add one line for a new model: how to make it, and an input for it. Its recurrent weights are
# small, so that it converges for every seed; otherwise rounding errors would be visible.
MODELS = {
    "language_model": (
        lambda: LanguageModel(11, 6, TransformerCell(8, 2, 6, recurrent_scale=0.2)),
        np.array([[1, 2, 3, 4, 5, 0], [9, 8, 7, 6, 10, 1]], "int32"),
    ),
    "reasoner": (
        lambda: Reasoner(3, 2, tfdeq.cells.RecallConvolution(8, recurrent_scale=0.2)),
        np.array([[[1, 2, 0], [0, 2, 1]], [[2, 2, 1], [0, 0, 1]]], "int32"),
    ),
}


# --- every solver and every rule --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "adjoint"),
    fast(
        [
            *(("anderson", adjoint) for adjoint in adjoints.REGISTRY),
            *((name, "implicit") for name in GENERAL),
            ("reversible", "reversible_backprop"),
        ],
        itertools.product(SOLVERS, adjoints.REGISTRY),
    ),
)
def test_gradient_of_a_linear_cell(name, adjoint):
    """Every pair of a solver and an adjoint: z = x (I − A)^-1 and its gradient, or an approximation."""
    rule = adjoints.get(adjoint)
    a, x = map(tf.constant, linear_case(seed=8))
    if not isinstance(SOLVERS[name], rule.solver_kind):
        with pytest.raises(ValueError, match=f"{type(rule).__name__} needs the forward solver"):
            tfdeq.fixed_point(linear, x, (a, x), SOLVERS[name], rule)
        return

    def solve(a, x):
        with tf.GradientTape() as tape:
            tape.watch([a, x])
            z = tfdeq.fixed_point(linear, tf.zeros_like(x), (a, x), SOLVERS[name], adjoint).z
            loss = tf.reduce_sum(z**3)
        return z, *tape.gradient(loss, [a, x])

    inverse = np.linalg.inv(np.eye(4) - a.numpy())
    expected = x.numpy() @ inverse
    u = 3 * expected**2 @ inverse.T
    z, d_a, d_x = in_mode(solve, "graph")(a, x)
    np.testing.assert_allclose(z, expected, rtol=1e-10, atol=1e-10)
    if rule.exact:
        np.testing.assert_allclose(d_a, expected.T @ u, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(d_x, u, rtol=1e-7, atol=1e-7)
    # ‖A‖ = 1/2, so even the first term of the series is within 30 degrees, for d_x.
    assert np.sum(d_x * u) >= np.cos(np.pi / 6) * np.linalg.norm(d_x) * np.linalg.norm(u)


def _mixed_case():
    """Returns a state of two tensors, args with an integer leaf, and settings for each sample."""
    a, x = linear_case(batch=4, size=3, radius=0.6, seed=3)
    z0 = {"p": tf.zeros([4, 3], tf.float64), "q": tf.ones([4, 2, 3], tf.float64)}
    args = ({"a": tf.constant(a), "token": tf.constant([0, 2, 1, 2])}, tf.constant(x))

    def f(z, weights, x):
        mixed = tf.tanh(tf.matmul(z["q"][:, 0] + z["p"], 0.5 * weights["a"]) + x)
        rows = tf.gather(weights["a"], weights["token"])
        return {"p": mixed, "q": tf.stack([0.5 * z["q"][:, 1] + rows, tf.sin(z["p"])], axis=1)}

    settings = {
        "tolerance": tf.constant([1e-9, 1e-3, 1e-9, 1e-6]),
        "max_steps": tf.constant([60, 60, 5, 60]),
    }
    return f, z0, args, settings


def _solver_of(rule):
    kind = tfdeq.Broyden if rule.solver_kind is solvers.Solver else rule.solver_kind
    return kind(max_steps=60, tolerance=1e-9)


def _mixed_gradients(adjoint, mode, parts=(slice(None),)):
    """Returns the gradients of each part of the batch; parts of the same size share a trace."""
    f, z0, (weights, x), settings = _mixed_case()
    rule = adjoints.get(adjoint)

    def run(a, z0, token, x, settings):
        with tf.GradientTape() as tape:
            tape.watch([a, x])
            args = ({"a": a, "token": token}, x)
            solution = tfdeq.fixed_point(f, z0, args, _solver_of(rule), rule, **settings)
            loss = tf.add_n([tf.reduce_sum(leaf**2) for leaf in tf.nest.flatten(solution.z)])
        return solution, *tape.gradient(loss, [a, x])

    run = in_mode(run, mode)
    batch = (z0, weights["token"], x, settings)
    return [
        run(weights["a"], *tf.nest.map_structure(lambda leaf: leaf[part], batch))  # noqa: B023
        for part in parts
    ]


@pytest.mark.parametrize("adjoint", fast(["implicit"], adjoints.REGISTRY))
def test_rule_is_the_same_in_every_mode(adjoint):
    eager, graph, xla = (_mixed_gradients(adjoint, mode)[0] for mode in EVERY_MODE)
    # Rounding in an estimate from differences; see Shine's tests.
    tolerance = 1e-4 if adjoints.get(adjoint).solver_kind is tfdeq.Broyden else 1e-9
    for other in (graph, xla):
        np.testing.assert_array_equal(other[0].steps, eager[0].steps)
        np.testing.assert_array_equal(other[0].status, eager[0].status)
        _assert_close(other[0].z, eager[0].z, 1e-9)
        _assert_close(other[1:], eager[1:], tolerance)


@pytest.mark.parametrize("adjoint", fast(["implicit"], adjoints.REGISTRY))
def test_rule_treats_each_sample_as_if_alone(adjoint):
    rows = [slice(row, row + 1) for row in range(4)]
    (together, d_a, d_x), *alone = _mixed_gradients(adjoint, "graph", [slice(None), *rows])
    np.testing.assert_array_equal(together.steps, [one[0].steps[0] for one in alone])
    tolerance = 1e-4 if adjoints.get(adjoint).solver_kind is tfdeq.Broyden else 1e-9
    _assert_close(d_x, np.concatenate([one[2] for one in alone]), tolerance)
    _assert_close(d_a, sum(tf.convert_to_tensor(one[1]) for one in alone), tolerance)


@pytest.mark.parametrize(
    "adjoint", fast(["implicit", "unrolled", "reversible_backprop"], adjoints.REGISTRY)
)
def test_rule_gives_z0_no_gradient(adjoint):
    f, z0, args, _ = _mixed_case()
    rule = adjoints.get(adjoint)
    with tf.GradientTape() as tape:
        tape.watch(tf.nest.flatten(z0))
        z = tfdeq.fixed_point(f, z0, args, _solver_of(rule), rule).z
    assert tape.gradient(z, tf.nest.flatten(z0)) == [None, None]


@pytest.mark.parametrize("adjoint", fast(["implicit"], adjoints.REGISTRY))
def test_rule_trains_a_layer_that_is_saved_and_loaded(adjoint, tmp_path):
    solver = _solver_of(adjoints.get(adjoint))
    inputs = keras.Input([4])
    layer = tfdeq.DEQLayer(DenseCell(4), type(solver)(12, 1e-3), adjoint)
    model = keras.Model(inputs, layer(inputs))
    model.compile("sgd", "mse", jit_compile=True)
    x = _floats(6, 4)
    first, last = (model.fit(x, 0.1 * x, epochs=4, verbose=0).history["loss"][i] for i in (0, -1))
    assert last < first
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[1].adjoint == adjoints.get(adjoint)
    _assert_close(loaded(x), model(x), 1e-6)


@pytest.mark.parametrize("name", fast(["anderson"], GENERAL))
def test_modes_agree(name):
    a, x = linear_case(batch=4, radius=0.9, seed=9)

    def solve():
        return tfdeq.fixed_point(tanh_cell, tf.zeros_like(x), (a, x), name, tolerance=1e-6)

    eager, graph, xla = (in_mode(solve, mode)() for mode in EVERY_MODE)
    for other in (graph, xla):
        np.testing.assert_allclose(other.z, eager.z, rtol=1e-9)
        np.testing.assert_array_equal(other.steps, eager.steps)
        np.testing.assert_array_equal(other.status, eager.status)


@pytest.mark.parametrize("registry", [solvers.REGISTRY, adjoints.REGISTRY])
def test_registered_names_are_public_and_serialisable(registry):
    for name, kind in registry.items():
        assert kind.__name__ in tfdeq.__all__, name
        config = keras.saving.serialize_keras_object(kind())
        assert keras.saving.deserialize_keras_object(config) == kind()


# --- every cell and model ---------------------------------------------------------------------------


def _tensors(x):
    return tf.nest.map_structure(tf.constant, x)


def _assert_close(one, other, tolerance):
    for left, right in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True):
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", fast(["noisy", "transformer"], CELLS))
def test_cell_converges_and_learns_in_a_layer(name):
    make, x = CELLS[name]
    x = _tensors(x)
    layer = tfdeq.DEQLayer(make(), tfdeq.Anderson(max_steps=60, tolerance=1e-5))
    with tf.GradientTape() as tape:
        solution = layer(x, training=True, return_solution=True)
        loss = tf.add_n([tf.reduce_sum(leaf**2) for leaf in tf.nest.flatten(solution.z)])
    assert solution.converged.numpy().all()
    weights = [variable.value for variable in layer.trainable_variables]
    for variable, gradient in zip(
        layer.trainable_variables, tape.gradient(loss, weights), strict=True
    ):
        gradient = tf.convert_to_tensor(gradient)
        assert np.isfinite(gradient).all(), variable.path


@pytest.mark.parametrize("name", fast(["noisy", "pair", "trellis"], CELLS))
def test_cell_is_batch_invariant_in_inference(name):
    make, x = CELLS[name]
    layer = tfdeq.DEQLayer(make(), tfdeq.Anderson(max_steps=60, tolerance=1e-5))
    together = layer(_tensors(x), return_solution=True)
    alone = layer(_tensors(tf.nest.map_structure(lambda leaf: leaf[1:2], x)), return_solution=True)
    assert alone.steps[0] == together.steps[1]
    _assert_close(alone.z, tf.nest.map_structure(lambda leaf: leaf[1:2], together.z), 1e-5)


@pytest.mark.parametrize("name", fast(["pair"], CELLS))
def test_cell_runs_in_litert(name, tmp_path):
    _assert_cell_is_equal_in(tmp_path / "model.tflite", name)


@pytest.mark.slow  # tests/serving/edge/onnx_file_test.py has fast tests
@pytest.mark.parametrize("name", CELLS)
def test_cell_runs_in_onnx(name, tmp_path):
    _assert_cell_is_equal_in(tmp_path / "model.onnx", name)


def _assert_cell_is_equal_in(path, name):
    make, x = CELLS[name]
    x = tf.nest.map_structure(lambda leaf: leaf if leaf.dtype.kind == "f" else np.int32(leaf), x)
    x = x if isinstance(x, dict) else {"x": x}
    given = {
        key: keras.Input(leaf.shape[1:], dtype=leaf.dtype.name, name=key) for key, leaf in x.items()
    }
    # A history as long as the state would make small systems singular, whose solution is rounding.
    layer = tfdeq.DEQLayer(make(), tfdeq.Anderson(max_steps=60, tolerance=1e-4, memory=3))
    leaves = tf.nest.flatten(layer(given if len(given) > 1 else given["x"]))
    model = keras.Model(given, {f"y{index}": leaf for index, leaf in enumerate(leaves)})
    _assert_equal_in(path, model, x)


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERAL)
def test_solver_runs_in_litert(name, tmp_path):
    inputs = keras.Input((4,), name="x")
    settings = {"memory": 3} if name == "anderson" else {}
    solver = dataclasses.replace(solvers.get(name), max_steps=60, tolerance=1e-4, **settings)
    model = keras.Model(inputs, {"y": tfdeq.DEQLayer(DenseCell(4), solver)(inputs)})
    _assert_equal_in(tmp_path / "model.tflite", model, {"x": _floats(3, 4)})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["forward_backward", "peaceman_rachford"])
def test_splitting_solver_runs_in_litert(name, tmp_path):
    inputs = keras.Input((3,), name="x")
    layer = tfdeq.DEQLayer(tfdeq.cells.MonotoneDense(4, monotonicity=0.5), name)
    model = keras.Model(inputs, {"y": layer(inputs)})
    _assert_equal_in(tmp_path / "model.tflite", model, {"x": _floats(3, 3)})


def _assert_equal_in(path, model, x):
    with tfdeq.SolveScope() as scope:
        expected = model(x)
    (solution,) = scope.solutions.values()
    answer = Interpreter(convert(model, path)).answer("serving_default", x)
    expected = {**expected, **{name: getattr(solution, name) for name in CONVERGENCE}}
    pairs = [
        (
            f"row {row}",
            *({name: found[name][row] for name in expected} for found in (answer, expected)),
        )
        for row in range(len(answer["steps"]))
    ]
    # A row that stops a step apart because rounding decides whether it meets the tolerance may differ.
    found = checks.compare(path.suffix, pairs, model.layers[-1].solver.tolerance)
    assert found.passed, found.text


@pytest.mark.parametrize("name", fast(["dense"], CELLS))
def test_cell_survives_its_config(name):
    make, x = CELLS[name]
    layer = tfdeq.DEQLayer(make())
    before = layer(_tensors(x))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    again(_tensors(x))
    again.set_weights(layer.get_weights())
    _assert_close(again(_tensors(x)), before, 1e-6)


def _model(name):
    if name in MODELS:
        make, x = MODELS[name]
        return make(), x
    make, x = CELLS[name]
    inputs = keras.tree.map_structure(
        lambda leaf: keras.Input(leaf.shape[1:], dtype=leaf.dtype.name), x
    )
    return keras.Model(inputs, tfdeq.DEQLayer(make())(inputs)), x


def _input_spec(leaf):
    return tf.TensorSpec((None, *leaf.shape[1:]), leaf.dtype)


@pytest.mark.parametrize("name", fast(["pair"], [*CELLS, *MODELS]))
def test_saving_and_exporting(name, tmp_path):
    model, x = _model(name)
    expected = model(_tensors(x))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    _assert_close(loaded(_tensors(x)), expected, 1e-5)
    # Keras assumes float inputs for a subclassed model.
    signature = [keras.tree.map_structure(_input_spec, x)] if name in MODELS else None
    model.export(tmp_path / "exported", verbose=False, input_signature=signature)
    served = tf.saved_model.load(str(tmp_path / "exported"))
    # The exported graph is optimised separately: with a tolerance of 1e-3 the last bits may matter.
    _assert_close(served.serve(_tensors(x)), expected, 1e-4)


@pytest.mark.parametrize(
    "name",
    fast(
        ["transformer"],
        [name for name in CELLS if name.startswith(("transformer", "trellis"))],
    ),
)
def test_lengths_need_not_be_known(name):
    make, x = CELLS[name]
    inputs = keras.Input((None, x.shape[-1]))
    model = keras.Model(inputs, tfdeq.DEQLayer(make(), "anderson")(inputs))
    assert model.outputs[0].shape == (None, None, model.outputs[0].shape[-1])
    compiled = tf.function(model, input_signature=[tf.TensorSpec((None, None, x.shape[-1]))])
    for length in (x.shape[1], 2, 1):
        part = tf.constant(x[:, :length])
        # One graph for all lengths, compared with one for this length; both are within the
        # tolerance of 1e-3.
        _assert_close(compiled(part), model(part), 1e-4)


@pytest.mark.parametrize("name", fast(["transformer"], [*CELLS, *MODELS]))
def test_compiled_by_xla(name):
    model, x = _model(name)
    expected = model(_tensors(x))
    compiled = tf.function(model, jit_compile=True)
    _assert_close(compiled(_tensors(x)), expected, 1e-4)
