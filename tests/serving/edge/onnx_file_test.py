"""Models as ONNX files, asked by ONNX Runtime."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import DenseCell, fast
from tfdeq.serving import convert
from tfdeq.serving.edge import litert, onnx_file
from tfdeq.serving.edge.converted import FORMATS
from tfdeq.serving.edge.interpreter import Interpreter
from tfdeq.serving.kinds.keras_kind import KerasKind
from tfdeq.serving.server.isolated import Request
from tfdeq.serving.signatures.signature import CONVERGENCE
from tfdeq.serving.verification import edge_checks

ROWS = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)


def _model(solver):
    keras.utils.set_random_seed(0)
    x = keras.Input((3,), name="x")
    z = tfdeq.DEQLayer(DenseCell(12), solver, name="depth")(keras.layers.Dense(12)(x))
    return keras.Model(x, keras.layers.Dense(2)(z))


def _expected(model, **settings):
    with tfdeq.SolveScope(**settings) as scope:
        outputs = model(ROWS)
    return outputs, scope.solutions["depth"]


@pytest.mark.parametrize(
    "solver",
    [
        pytest.param("anderson", marks=pytest.mark.slow),
        "reversible",  # its next state is the iterate itself, which must not be overwritten
        pytest.param("broyden", marks=pytest.mark.slow),
        pytest.param("newton_krylov", marks=pytest.mark.slow),
    ],
)
def test_answers_are_the_models(solver, tmp_path):
    model = _model(solver)
    interpreter = Interpreter(convert(model, tmp_path / "model.onnx"))
    for settings in ({}, {"tolerance": 1e-5}, {"tolerance": 1e-9, "max_steps": 3}):
        outputs, solution = _expected(model, **settings)
        asked = {name: [value] * len(ROWS) for name, value in settings.items()}
        answer = interpreter.answer("serving_default", {"x": ROWS, **asked})
        # Two libraries' roundings of numbers of about 1.
        np.testing.assert_allclose(answer["output_0"], outputs, atol=2e-6)
        np.testing.assert_allclose(answer["residual"], solution.residual, rtol=1e-3, atol=1e-6)
        np.testing.assert_array_equal(answer["steps"], solution.steps)
        np.testing.assert_array_equal(answer["status"], solution.status)
    rows = ROWS.copy()
    rows[1, 0] = np.nan
    answer = interpreter.answer("serving_default", {"x": rows})
    assert answer["status"].tolist() == [0, tfdeq.Status.NON_FINITE, 0]
    assert np.isfinite(answer["output_0"]).all()


@pytest.mark.slow
def test_an_output_that_is_named_like_an_input(tmp_path):
    # The state goes in and comes out under one name, which ONNX does not permit.
    model = _model("fixed_point_iteration")
    path = convert(model, tmp_path / "step.onnx", signatures=["step"], batch_size=2)
    interpreter = Interpreter(path)
    assert interpreter.signatures["step"]["outputs"].count("equilibrium") == 1
    solution = _expected(model)[1]
    for state, fewest in ((np.zeros([3, 12]), 5), (solution.z, 1)):
        answer = interpreter.answer("step", {"x": ROWS, "equilibrium": state})
        np.testing.assert_allclose(answer["equilibrium"], solution.z, atol=2e-3)  # the tolerance
        assert (answer["steps"] >= fewest).all()
    assert (answer["steps"] <= 2).all(), "the start is the answer already"


def _litert(function, folder):
    """Returns the LiteRT file of a function of x [1, 5] with the signature f."""
    spec = tf.TensorSpec([1, 5], tf.float32, "x")
    traced = tf.function(lambda x: {"y": function(x)}, input_signature=[spec])
    tf.saved_model.save(tf.Module(), str(folder), signatures={"f": traced.get_concrete_function()})
    return tf.lite.TFLiteConverter.from_saved_model(str(folder)).convert()


@pytest.mark.parametrize("approximate", fast([False], [False, True]))
def test_gelu(approximate, tmp_path):
    content = _litert(lambda x: tf.nn.gelu(x, approximate), tmp_path / "m")
    (tmp_path / "m.onnx").write_bytes(onnx_file.from_litert(content, "f"))
    x = np.array([[-3.0, -0.5, 0.0, 0.5, 3.0]], np.float32)
    found = Interpreter(tmp_path / "m.onnx").answer("f", {"x": x})["y"]
    np.testing.assert_allclose(found, tf.nn.gelu(x, approximate), atol=1e-6)


def _rows(x):
    """The older operation, which chooses whole rows."""
    states = tf.transpose(x) * tf.constant([[1.0, 2.0]])
    return tf.raw_ops.Select(condition=x[0] > 0, x=states, y=tf.zeros([5, 2]))[None]


@pytest.mark.parametrize(
    "f",
    [
        pytest.param(lambda x: tf.where(x > 0, x, tf.constant([[0.5]])), id="numbers"),
        pytest.param(lambda x: tf.where(x > 0, x > 1, x < -1), id="booleans"),
        pytest.param(_rows, id="rows"),
    ],
)
def test_what_is_not_chosen_does_not_matter(f, tmp_path):
    content = _litert(f, tmp_path / "m")
    (tmp_path / "m.onnx").write_bytes(onnx_file.from_litert(content, "f"))
    x = np.array([[np.nan, 1.0, -np.inf, np.inf, -1.0]], np.float32)
    found = Interpreter(tmp_path / "m.onnx").answer("f", {"x": x})["y"]
    np.testing.assert_array_equal(found, f(tf.constant(x)))


def test_what_cannot_be_converted(tmp_path):
    model = _model("fixed_point_iteration")
    with pytest.raises(ValueError, match="one signature; received encode, step. Write a file"):
        convert(model, tmp_path / "m.onnx", signatures=["encode", "step"])
    with pytest.raises(ValueError, match="precision must be one of float32; received 'float16'"):
        convert(model, tmp_path / "m.onnx", precision="float16")
    assert not list(tmp_path.iterdir())


def test_operations_that_tf2onnx_lacks_are_named(tmp_path):
    content = _litert(lambda x: tf.bitcast(x, tf.int32), tmp_path / "m")
    with pytest.raises(ValueError, match="convert the signature f: it lacks BITCAST of LiteRT"):
        onnx_file.from_litert(content, "f")


@pytest.mark.slow
def test_a_file_is_compared_with_its_model(tmp_path):
    kind = KerasKind(_model("anderson"), examples={"x": ROWS})
    content, described = litert.convert_kind(kind, format="onnx")
    path = tmp_path / FORMATS["onnx"].names["float32"]
    path.write_bytes(content)
    outputs, solution = _expected(kind.model)
    rows = {"output_0": outputs, **{name: getattr(solution, name) for name in CONVERGENCE}}
    answers = [{name: value[row].numpy() for name, value in rows.items()} for row in range(3)]
    settings = {"tolerance": np.zeros([3], np.float32), "max_steps": np.zeros([3], np.int32)}
    requests = [Request("rows", "serving_default", {"x": ROWS, **settings})]
    found = edge_checks.check(path, described, requests, [answers], tolerance=1e-3)
    assert found.passed, found.text
    assert found.name == "ONNX, float32: equal to the Keras model"
    answers[1]["output_0"] = answers[1]["output_0"] + 0.1
    assert not edge_checks.check(path, described, requests, [answers], tolerance=1e-3).passed
