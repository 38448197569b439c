"""Weights of a LiteRT file in float16 and int8."""

import numpy as np
import pytest
import tensorflow as tf

from tfdeq.serving.edge.runtimes import LiteRT
from tfdeq.serving.edge.stored_weights import with_stored_weights


def _file(matrix, vector):
    @tf.function(input_signature=[tf.TensorSpec([1, matrix.shape[0]], tf.float32, "x")])
    def f(x):
        return {"y": tf.matmul(x, tf.constant(matrix)) + tf.constant(vector)}

    module = tf.Module()
    module.f = f
    return tf.lite.TFLiteConverter.from_concrete_functions(
        [f.get_concrete_function()], module
    ).convert()


def _answer(content, tmp_path):
    (tmp_path / "m.tflite").write_bytes(content)
    interpreter = LiteRT(tmp_path / "m.tflite", threads=1).interpreter
    interpreter.allocate_tensors()
    (asked,) = interpreter.get_input_details()
    interpreter.set_tensor(asked["index"], np.ones(asked["shape"], np.float32))
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0]


def test_matrices_are_rounded_and_vectors_are_not(tmp_path):
    generator = np.random.default_rng(0)
    matrix, vector = (generator.normal(size=size).astype(np.float32) for size in ([8, 512], [512]))
    content = _file(matrix, vector)
    half = with_stored_weights(content, "float16")
    # Half of the matrix's 16,384 bytes are gone; what is new takes less than a kilobyte.
    assert len(content) - 8192 <= len(half) <= len(content) - 8192 + 1024
    rounded = matrix.astype(np.float16).astype(np.float32)
    # Sums of eight products in another order.
    np.testing.assert_allclose(_answer(half, tmp_path), rounded.sum(0) + vector, atol=2e-6)


def test_what_float16_cannot_hold_stays(tmp_path):
    for value in (1e6, 1e-9):
        matrix = np.full([8, 16], value, np.float32)
        found = _answer(
            with_stored_weights(_file(matrix, np.zeros([16], np.float32)), "float16"), tmp_path
        )
        np.testing.assert_allclose(found, 8 * value, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_int8_has_a_scale_for_each_row_or_column(axis, tmp_path):
    """Whichever loses less: here slices along one axis differ in size a thousand times."""
    generator = np.random.default_rng(0)
    size = 10.0 ** generator.uniform(-3, 0, size=(64, 1) if axis == 0 else (1, 64))
    matrix = (generator.uniform(-1, 1, size=(64, 64)) * size).astype(np.float32)
    vector = generator.normal(size=64).astype(np.float32)
    content = _file(matrix, vector)
    small = with_stored_weights(content, "int8")
    largest = np.abs(matrix).max(axis=1 - axis, keepdims=True)
    rounded = np.round(matrix / largest * 127) / 127 * largest
    np.testing.assert_allclose(_answer(small, tmp_path), rounded.sum(0) + vector, rtol=0, atol=1e-5)
    assert np.abs(rounded - matrix).max() > 1e-4  # it is not the matrix itself


def test_int8_saves_three_quarters():
    matrix = np.random.default_rng(0).normal(size=(8, 4096)).astype(np.float32)
    content = _file(matrix, np.zeros(4096, np.float32))
    saved = len(content) - len(with_stored_weights(content, "int8"))
    assert 3 * matrix.size - 2048 <= saved <= 3 * matrix.size


def test_what_int8_cannot_hold_stays(tmp_path):
    for value in (np.inf, 1e-42):
        matrix = np.full([8, 16], value, np.float32)
        found = _answer(
            with_stored_weights(_file(matrix, np.zeros([16], np.float32)), "int8"), tmp_path
        )
        np.testing.assert_allclose(found, 8 * matrix[0], atol=1e-40)
