"""Models as LiteRT files: their answers, sizes and errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import DenseCell, fast
from tfdeq.serving import convert
from tfdeq.serving.edge.converted import FORMATS
from tfdeq.serving.edge.interpreter import Interpreter

ROWS = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)


def _model(solver, before=None):
    x = keras.Input((3,), name="x")
    h = keras.layers.Dense(12)(x if before is None else before(x))
    z = tfdeq.DEQLayer(DenseCell(12), solver, name="depth")(h)
    return keras.Model(x, keras.layers.Dense(2)(z))


def _expected(model, tolerance=None):
    with tfdeq.SolveScope(tolerance=tolerance) as scope:
        outputs = model(ROWS)
    return outputs, scope.solutions["depth"]


@pytest.mark.parametrize("precision", fast(["float32"], FORMATS["litert"].names))
def test_answers_are_the_models(precision, tmp_path):
    keras.utils.set_random_seed(0)
    model = _model(tfdeq.Anderson(tolerance=1e-3))
    path = convert(model, tmp_path / "folder" / "model.tflite", precision=precision)
    interpreter = Interpreter(path)
    for tolerance in (None, 1e-5):
        outputs, solution = _expected(model, tolerance)
        asked = {"x": ROWS} if tolerance is None else {"x": ROWS, "tolerance": [tolerance] * 3}
        answer = interpreter.answer("serving_default", asked)
        # float32: two libraries' roundings. Else the weights' rounding, 5e-4 or 4e-3 of each.
        limit = {"float32": 2e-5, "float16": 5e-3, "int8": 5e-2}[precision]
        np.testing.assert_allclose(answer["output_0"], outputs, atol=limit)
        if precision == "float32":
            np.testing.assert_array_equal(answer["steps"], solution.steps)
        # Settings are not rounded with the weights: float16's 1e-3 is 1.0004e-3.
        assert (answer["residual"] <= (tolerance or 1e-3)).all()
        assert (answer["status"] == tfdeq.Status.CONVERGED).all()


def test_a_state_that_is_passed_on_is_not_overwritten(tmp_path):
    # Reversible's next state is the iterate itself, which LiteRT would have overwritten.
    model = _model(tfdeq.Reversible(max_steps=40))
    answer = Interpreter(convert(model, tmp_path / "m.tflite")).answer(
        "serving_default", {"x": ROWS}
    )
    np.testing.assert_array_equal(answer["steps"], _expected(model)[1].steps)


@pytest.mark.slow
def test_several_signatures_and_examples_in_a_call(tmp_path):
    model = _model("broyden")
    names = ["serving_default", "encode", "step"]
    path = convert(model, tmp_path / "m.tflite", signatures=names, batch_size=2)
    interpreter = Interpreter(path)
    assert sorted(interpreter.signatures) == sorted(names)
    state = interpreter.answer("encode", {"x": ROWS})  # three examples, two in a call
    np.testing.assert_allclose(state["equilibrium"], _expected(model)[1].z, atol=1e-5)
    again = interpreter.answer("step", {"x": ROWS, "equilibrium": state["equilibrium"]})
    assert (again["steps"] <= 2).all(), "the start is the answer already"


def test_examples_that_are_not_finite_say_so(tmp_path):
    rows = ROWS.copy()
    rows[1, 0] = np.nan
    path = convert(_model("fixed_point_iteration"), tmp_path / "m.tflite")
    answer = Interpreter(path).answer("serving_default", {"x": rows})
    assert answer["status"].tolist() == [0, tfdeq.Status.NON_FINITE, 0]
    assert np.isfinite(answer["output_0"]).all()


class _Solved(keras.layers.Layer):
    def call(self, x):
        return tf.linalg.expm(x[:, :1, None] * tf.eye(3))[:, 0]


@pytest.mark.slow
def test_what_cannot_be_converted(tmp_path):
    model = _model("anderson", before=_Solved())
    path = tmp_path / "m.tflite"
    path.write_text("before")
    with pytest.raises(ValueError, match="LiteRT cannot run the signature serving_default.*Matrix"):
        convert(model, path)
    assert path.read_text() == "before", "a file that was there stays"
    with pytest.raises(ValueError, match="no signature solve. It has: serving_default"):
        convert(_model("anderson"), path, signatures=["solve"])
    with pytest.raises(
        ValueError, match="precision must be one of float32, float16, int8; received 'int4'"
    ):
        convert(model, path, precision="int4")
    with pytest.raises(ValueError, match="batch_size must be at least 1; received 0"):
        convert(model, path, batch_size=0)


@pytest.mark.slow
def test_sizes_that_a_model_leaves_open(tmp_path):
    x = keras.Input((None, 4), name="x")
    z = tfdeq.DEQLayer(tfdeq.cells.RecallConvolution(4, rank=1, recurrent_scale=0.2), "anderson")(x)
    model = keras.Model(x, z)
    with pytest.raises(ValueError, match=r"LiteRT needs the shape of every input.*'x'.*shapes="):
        convert(model, tmp_path / "m.tflite")
    path = convert(model, tmp_path / "m.tflite", shapes={"x": [6, 4]})
    rows = np.random.default_rng(0).normal(size=(1, 6, 4)).astype(np.float32)
    answer = Interpreter(path).answer("serving_default", {"x": rows})
    np.testing.assert_allclose(answer["output_0"], model(rows), atol=1e-5)


@pytest.mark.slow  # the same for another operation is above
def test_operations_that_litert_lacks_are_named(tmp_path):
    # Newton's method needs the derivative of the cell's ReLU. No other operation is blamed.
    x = keras.Input((3,), name="x")
    cell = tfdeq.cells.MonotoneDense(4, monotonicity=0.5)
    model = keras.Model(x, tfdeq.DEQLayer(cell, "newton_krylov")(x))
    with pytest.raises(ValueError, match=r"it lacks ReluGrad\. Replace"):
        convert(model, tmp_path / "m.tflite")


@pytest.mark.slow
def test_a_radius_is_not_part_of_the_answers(tmp_path):
    # A certificate is computed in float64, which LiteRT lacks.
    x = keras.Input((3,), name="x")
    z = tfdeq.DEQLayer(tfdeq.cells.MonotoneDense(4, monotonicity=0.5), "forward_backward")(x)
    model = keras.Model(x, keras.layers.Dense(2)(z))
    answer = Interpreter(convert(model, tmp_path / "m.tflite")).answer(
        "serving_default", {"x": ROWS}
    )
    assert set(answer) == {"output_0", "residual", "steps", "status"}
    np.testing.assert_allclose(answer["output_0"], model(ROWS), atol=1e-5)
