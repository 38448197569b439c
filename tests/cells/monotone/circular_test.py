"""Tests of tfdeq.cells.monotone.circular, compared with sums over places and with matrices."""

import numpy as np
import pytest
import tensorflow as tf

from tfdeq.cells.monotone import circular


def _kernel(size, inputs, outputs, seed=0):
    return np.random.default_rng(seed).normal(size=(size, size, inputs, outputs))


def matrix_of(kernel, rows, columns, stride=1):
    """Returns the matrix of a circular convolution, by which flattened images are multiplied."""
    size, inputs, outputs = kernel.shape[0], *kernel.shape[2:]
    reach = size // 2
    matrix = np.zeros((rows, columns, inputs, rows, columns, outputs))
    for row, column in np.ndindex(rows, columns):
        for down, across in np.ndindex(size, size):
            source = (row + down - reach) % rows, (column + across - reach) % columns
            matrix[source[0], source[1], :, row, column] += kernel[down, across]
    return matrix[:, :, :, ::stride, ::stride].reshape(rows * columns * inputs, -1)


@pytest.mark.parametrize(("rows", "columns"), [(4, 5), (5, 4), (1, 3), (2, 2)])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_convolution_and_symbol_are_those_of_the_matrix(size, rows, columns):
    """Including images smaller than the kernel, which then overlaps itself."""
    kernel = _kernel(size, 2, 3)
    x = np.random.default_rng(1).normal(size=(2, rows, columns, 2))
    matrix = matrix_of(kernel, rows, columns)
    expected = (x.reshape(2, -1) @ matrix).reshape(2, rows, columns, 3)
    found = circular.circular_convolution(tf.constant(x), tf.constant(kernel))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    symbol = circular.symbol(tf.constant(kernel), (rows, columns))
    found = circular.apply_symbol(tf.constant(x), symbol, (rows, columns))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    values = np.linalg.svd(symbol, compute_uv=False)
    exact = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose([values.max(), values.min()], [exact.max(), exact[-1]], atol=1e-12)


def test_adjoint_and_product_are_those_of_the_matrices():
    first, second = _kernel(3, 2, 3), _kernel(3, 3, 2, seed=1)
    one, other = matrix_of(first, 4, 5), matrix_of(second, 4, 5)
    adjoint = circular.adjoint_kernel(tf.constant(first)).numpy()
    np.testing.assert_allclose(matrix_of(adjoint, 4, 5), one.T)
    both = circular.composed(tf.constant(first), tf.constant(second)).numpy()
    np.testing.assert_allclose(matrix_of(both, 4, 5), one @ other, atol=1e-12)


@pytest.mark.parametrize(("rows", "columns"), [(4, 6), (2, 2)])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_stride_and_adjoint_are_those_of_the_matrix(size, rows, columns):
    kernel = _kernel(size, 2, 3)
    x = np.random.default_rng(1).normal(size=(2, rows, columns, 2))
    for stride in (1, 2):
        matrix = matrix_of(kernel, rows, columns, stride)
        y = circular.circular_convolution(tf.constant(x), tf.constant(kernel), stride)
        assert y.shape == (2, rows // stride, columns // stride, 3)
        expected = x.reshape(2, -1) @ matrix
        np.testing.assert_allclose(y.numpy().reshape(2, -1), expected, atol=1e-12)
        back = circular.adjoint_convolution(y, tf.constant(kernel), stride)
        assert back.shape == x.shape
        expected = expected @ matrix.T
        np.testing.assert_allclose(back.numpy().reshape(2, -1), expected, atol=1e-12)


def test_sizes_need_not_be_known():
    kernel = tf.constant(_kernel(3, 2, 2))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 2], tf.float64)])
    def run(x):
        size = tuple(tf.unstack(tf.shape(x)[1:3]))
        y = circular.apply_symbol(x, circular.symbol(kernel, size), size)
        return circular.circular_convolution(x, kernel), y

    for shape in ((2, 4, 5, 2), (1, 1, 2, 2)):
        x = tf.constant(np.random.default_rng(1).normal(size=shape))
        one, other = run(x)
        np.testing.assert_allclose(one, other, atol=1e-12)
