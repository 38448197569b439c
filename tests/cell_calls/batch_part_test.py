"""Batches in parts: the chosen rows and a layer's losses are those of the whole batch."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, fast, in_mode
from tfdeq.cell_calls.batch_part import BatchPart, choose_rows, current, part_of_batch

SEED = (3, 5)


def chosen(batch, fraction, seed, parts=1):
    """Returns number -> row of the whole batch, for all parts together."""
    found = {}
    for index in range(parts):
        part = BatchPart(index, parts, seed) if parts > 1 else None
        rows = choose_rows(batch // parts, fraction, seed, part)
        assert rows.total == math.ceil(batch * fraction)
        assert len(rows.rows) == math.ceil(rows.total / parts)
        numbers = range(rows.total) if parts == 1 else rows.numbers.numpy()
        there = [True] * rows.total if parts == 1 else rows.there.numpy()
        for number, row, is_there in zip(numbers, rows.rows.numpy(), there, strict=True):
            assert 0 <= row < batch // parts
            if is_there:
                assert number not in found
                found[number] = index * (batch // parts) + row
    return found


@pytest.mark.parametrize("fraction", fast([0.3], [0.0625, 0.25, 0.3, 0.5, 0.8, 1.0]))
def test_parts_choose_the_rows_of_the_whole(fraction):
    batch = 24
    for number in range(20):
        whole = chosen(batch, fraction, (number, 7))
        assert len(set(whole.values())) == math.ceil(batch * fraction)
        for parts in (2, 3, 4, 6, 24):
            assert chosen(batch, fraction, (number, 7), parts) == whole


def test_each_row_is_as_likely():
    """Five of twelve: over 1,200 draws each row's share within four standard deviations of 5 / 12."""
    counts = np.zeros(12)
    for number in range(1200):
        counts[[*chosen(12, 0.4, (number, 1)).values()]] += 1
    assert np.abs(counts / 1200 - 5 / 12).max() < 4 * math.sqrt(5 / 12 * 7 / 12 / 1200)


def test_the_part_is_that_of_the_innermost_context():
    assert current() is None
    with part_of_batch(1, 4, SEED):
        first = current()
        with part_of_batch(0, 2, SEED):
            assert current().count == 2
        assert current() is first
    assert current() is None


def test_seeds_differ_from_draw_to_draw_and_agree_between_parts():
    parts = [BatchPart(index, 2, SEED) for index in range(2)]
    seeds = [[tuple(part.next_seed().numpy()) for _ in range(3)] for part in parts]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 3


class TanhCell(keras.layers.Layer):
    """tanh(W z + x) on places [B, T, 3], so that the penalty depends on the row."""

    def build(self, _):
        self.kernel = self.add_weight(shape=(3, 3), initializer="orthogonal")

    def call(self, z, x):
        return keras.ops.tanh(0.7 * keras.ops.matmul(z, self.kernel) + x)


def penalty_and_gradient(layer, x, parts, mode):
    """Returns the mean over the parts of the layer's loss, and its gradient."""

    def of_part(rows, index):
        with tf.GradientTape() as tape, part_of_batch(index, parts, SEED):
            layer(rows, training=True, explicit_steps=2)
            loss = tf.add_n(layer.losses)
        return loss, tape.gradient(loss, layer.cell.kernel)

    of_part = in_mode(of_part, mode)
    found = [
        of_part(rows, tf.constant(index)) for index, rows in enumerate(tf.split(x, parts, axis=0))
    ]
    return [np.mean([np.array(each[i]) for each in found], axis=0) for i in (0, 1)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("power_steps", fast([1], [0, 1]))
@pytest.mark.parametrize("fraction", fast([0.4], [0.125, 0.4, 1.0]))
def test_the_mean_over_parts_is_what_the_whole_adds(fraction, power_steps, mode):
    """Up to rounding, because sums over rows have another order."""
    keras.utils.set_random_seed(2)
    layer = tfdeq.DEQLayer(
        TanhCell(),
        jacobian_penalty=1.0,
        jacobian_penalty_fraction=fraction,
        jacobian_penalty_power_steps=power_steps,
    )
    x = tf.random.stateless_normal([8, 2, 3], [1, 2])
    layer(x)
    loss, gradient = penalty_and_gradient(layer, x, 1, mode)
    assert loss > 0.01
    for parts in (2, 8):
        other = penalty_and_gradient(layer, x, parts, mode)
        np.testing.assert_allclose(other[0], loss, rtol=1e-5)
        np.testing.assert_allclose(other[1], gradient, rtol=1e-4, atol=1e-6)


def test_the_budget_of_training_is_one_for_all_parts():
    layer = tfdeq.DEQLayer(
        TanhCell(), tfdeq.FixedPointIteration(8, 1e-12), training_max_steps=(1, 8)
    )
    x = tf.random.stateless_normal([2, 2, 3], [1, 2])
    layer(x)
    steps = set()
    for index in range(4):
        with part_of_batch(index, 4, SEED):
            found = layer(x, training=True, return_solution=True)
        steps.update(found.steps.numpy())
    assert len(steps) == 1
