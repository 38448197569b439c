"""Errors of requests to a LiteRT file."""

import keras
import numpy as np
import pytest

import tfdeq
from tests.support.cases import DenseCell
from tfdeq.serving import convert
from tfdeq.serving.edge.interpreter import Interpreter


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory):
    x = keras.Input((4,), name="x")
    model = keras.Model(x, tfdeq.DEQLayer(DenseCell(4), "fixed_point_iteration")(x))
    return Interpreter(convert(model, tmp_path_factory.mktemp("edge") / "m.tflite"))


@pytest.mark.parametrize(
    ("signature", "inputs", "message"),
    [
        ("solve", {"x": np.zeros([1, 4])}, "no signature 'solve'. It has: serving_default"),
        (
            "serving_default",
            {"x": np.zeros([1, 5])},
            r"'x' as \('N', 4\), with N = 1.*received \(1, 5\)",
        ),
        ("serving_default", {"y": np.zeros([1, 4])}, r"'x' as \('N', 4\).*received nothing"),
        (
            "serving_default",
            {"x": np.zeros([2, 4]), "tolerance": [1e-3]},
            r"'tolerance' as \('N',\), with N = 2.*received \(1,\)",
        ),
    ],
)
def test_what_does_not_fit(interpreter, signature, inputs, message):
    with pytest.raises(ValueError, match=message):
        interpreter.answer(signature, inputs)
