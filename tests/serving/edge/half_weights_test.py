"""Weights of a LiteRT file in float16."""

import numpy as np
import tensorflow as tf

from tfdeq.serving.edge.half_weights import with_half_weights
from tfdeq.serving.edge.runtimes import LiteRT


def _file(matrix, vector):
    @tf.function(input_signature=[tf.TensorSpec([1, 8], tf.float32, "x")])
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
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.ones([1, 8], np.float32))
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0]


def test_matrices_are_rounded_and_vectors_are_not(tmp_path):
    generator = np.random.default_rng(0)
    matrix, vector = (generator.normal(size=size).astype(np.float32) for size in ([8, 512], [512]))
    content = _file(matrix, vector)
    half = with_half_weights(content)
    # Half of the matrix's 16,384 bytes are gone; what is new takes less than a kilobyte.
    assert len(content) - 8192 <= len(half) <= len(content) - 8192 + 1024
    rounded = matrix.astype(np.float16).astype(np.float32)
    # Sums of eight products in another order.
    np.testing.assert_allclose(_answer(half, tmp_path), rounded.sum(0) + vector, atol=2e-6)


def test_what_float16_cannot_hold_stays(tmp_path):
    for value in (1e6, 1e-9):
        matrix = np.full([8, 16], value, np.float32)
        found = _answer(with_half_weights(_file(matrix, np.zeros([16], np.float32))), tmp_path)
        np.testing.assert_allclose(found, 8 * value, rtol=1e-6)
