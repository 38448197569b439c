"""Tests of tfdeq.solvers.history."""

import numpy as np
import pytest
import tensorflow as tf

from tests.support.cases import MODES, in_mode
from tfdeq.solvers import history


def _rows(count=3):
    return np.random.default_rng(0).normal(size=(2, count, 5))


@pytest.mark.parametrize("mode", MODES)
def test_products(mode):
    rows = _rows()
    v, weights = np.ones([2, 5]) * [[1], [2]], np.arange(6.0).reshape(2, 3)
    products, combined = in_mode(
        lambda rows: (history.inner_products(rows, v), history.combination(rows, weights)), mode
    )(tf.constant(rows))
    np.testing.assert_allclose(products, np.einsum("bmd,bd->bm", rows, v), rtol=1e-12)
    np.testing.assert_allclose(combined, np.einsum("bmd,bm->bd", rows, weights), rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_with_row_replaces_one_row_and_leaves_the_old_history_alone(mode):
    rows, row = _rows(), np.ones([2, 5])

    def replace(rows, position):
        return rows, history.with_row(rows, position, tf.constant(row))

    before, after = in_mode(replace, mode)(tf.constant(rows), tf.constant(1))
    np.testing.assert_array_equal(before, rows)
    rows[:, 1] = row
    np.testing.assert_array_equal(after, rows)


@pytest.mark.parametrize("mode", MODES)
def test_a_growing_history_is_a_full_one(mode):
    """Its products are those of a history padded with zeros, in a loop, even beyond its limit."""
    rows, limit = np.random.default_rng(1).normal(size=(6, 2, 5)), 4
    v = tf.ones([2, 5], tf.float64)

    def run():
        def body(k, kept):
            return k + 1, history.appended(kept, k % limit, tf.gather(tf.constant(rows), k))

        start = history.growing(v, limit)
        kept = tf.while_loop(lambda k, _: k < 6, body, (tf.constant(0), start))[1]
        products = history.inner_products(kept, v, limit)
        return products, history.combination(kept, products)

    products, combined = in_mode(run, mode)()
    expected = rows[[4, 5, 2, 3]].transpose(1, 0, 2)
    np.testing.assert_allclose(products, expected.sum(axis=2), rtol=1e-12)
    np.testing.assert_allclose(
        combined, np.einsum("bmd,bm->bd", expected, expected.sum(axis=2)), rtol=1e-12
    )


def test_padded():
    short, longer = tf.constant(_rows(2)), tf.constant(_rows(4))
    result = history.padded(short, longer)
    np.testing.assert_array_equal(result[:, :2], short)
    np.testing.assert_array_equal(result[:, 2:], np.zeros([2, 2, 5]))
