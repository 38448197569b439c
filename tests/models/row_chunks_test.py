"""Tests of tfdeq.models.row_chunks."""

import numpy as np
import pytest
import tensorflow as tf

from tests.support.cases import MODES, fast, in_mode
from tfdeq.models.row_chunks import chunked


def _function(rows, labels, matrix, bias):
    products = tf.tanh(tf.matmul(rows, matrix)) + bias
    return tf.gather(products, labels, axis=-1, batch_dims=1)


def _case(n):
    random = np.random.default_rng(n)
    rows, matrix, bias, d_y = (
        tf.constant(random.normal(size=shape)) for shape in ([n, 3], [3, 5], [5], [n])
    )
    return rows, tf.constant(random.integers(0, 5, size=n)), matrix, bias, d_y


MEMBERS = {
    "none": [False] * 7,
    "all": [True] * 7,
    "one": [False, True] + [False] * 5,
    "a full chunk": [True, False, True, True, False, False, False],
    "one more": [True, False, True, True, False, False, True],
}


@pytest.mark.parametrize("chunk", fast([3], [1, 3, 64]))
@pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS)
@pytest.mark.parametrize("mode", MODES)
def test_values_and_gradients_are_those_of_all_rows_masked(mode, member, chunk):
    rows, labels, matrix, bias, d_y = _case(7)
    member = tf.constant(member)

    def gradients(run):
        with tf.GradientTape() as tape:
            tape.watch([rows, matrix, bias])
            y = run()
        return y, *tape.gradient(y, [rows, matrix, bias], d_y)

    def masked():
        return tf.where(member, _function(rows, labels, matrix, bias), 0.0)

    def in_chunks():
        return chunked(_function, member, rows, labels, [matrix, bias], chunk)

    results = in_mode(lambda: gradients(in_chunks), mode)()
    for result, expected in zip(results, gradients(masked), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_no_row(mode):
    rows, labels, matrix, bias, _ = _case(0)
    member = tf.zeros([0], tf.bool)
    run = in_mode(lambda: chunked(_function, member, rows, labels, [matrix, bias]), mode)
    assert run().shape == (0,)


@pytest.mark.parametrize("mode", MODES)
def test_labels_of_others_need_make_no_sense(mode):
    """Cross entropy of a label out of range is NaN or an error, which labels of other rows must not cause."""
    rows, labels, matrix, _, d_y = _case(7)
    member = tf.constant(MEMBERS["one more"])
    nonsense = tf.where(member, labels, 1000)

    def nats(rows, labels, matrix):
        logits = tf.matmul(rows, matrix)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)

    def run(labels):
        with tf.GradientTape() as tape:
            tape.watch([rows, matrix])
            y = chunked(nats, member, rows, labels, [matrix], 3)
        return y, *tape.gradient(y, [rows, matrix], d_y)

    for result, expected in zip(in_mode(run, mode)(nonsense), run(labels), strict=True):
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-15)


def test_only_so_many_calls_as_the_members_need():
    rows, labels, matrix, bias, _ = _case(7)
    calls = []

    def counting(*arguments):
        calls.append(1)
        return _function(*arguments)

    chunked(counting, tf.constant(MEMBERS["one more"]), rows, labels, [matrix, bias], 3)
    assert len(calls) == 2
