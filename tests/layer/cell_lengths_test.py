"""Segments whose examples have different lengths: the memory after each one's last position."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import fast, in_mode
from tfdeq.cells import TransformerCell, TrellisCell

WIDTH, LENGTH = 8, 6
LENGTHS = np.int32([6, 3, 1, 0])
CELLS = {
    "span 1": lambda: TransformerCell(WIDTH, 2, LENGTH, recurrent_scale=0.4, span=1),
    "span 4": lambda: TransformerCell(WIDTH, 2, LENGTH, recurrent_scale=0.4, span=4),
    "span 12": lambda: TransformerCell(WIDTH, 2, LENGTH, recurrent_scale=0.4, span=12),
    "kernel 1": lambda: TrellisCell(WIDTH, 1, recurrent_scale=0.5),
    "kernel 2": lambda: TrellisCell(WIDTH, 2, recurrent_scale=0.5),
    "kernel 4": lambda: TrellisCell(WIDTH, 4, recurrent_scale=0.5),
}


def _inputs(length, batch=4, seed=0):
    values = np.random.default_rng(seed).normal(size=(batch, length, WIDTH))
    return tf.constant(values.astype("float32"))


def _layer(name):
    layer = tfdeq.DEQLayer(CELLS[name](), tfdeq.Anderson(max_steps=80, tolerance=1e-6))
    layer(_inputs(LENGTH))
    return layer


def _past(layer):
    """Returns the past after a segment of two positions."""
    x = _inputs(2, seed=1)
    segment = {"input": x, "past": layer.cell.initial_past(x)}
    return layer.cell.remember(layer(segment), layer.cell.inject(segment))


def _after(layer, segment, mask=None):
    z = layer(segment, mask=mask)
    return layer.cell.remember(z, layer.cell.inject(segment))


@pytest.mark.parametrize(
    ("name", "mode"),
    fast(
        [("span 4", "graph")],
        [*((name, "graph") for name in CELLS), ("span 4", "xla"), ("kernel 4", "xla")],
    ),
)
@pytest.mark.slow
def test_what_is_remembered_is_that_of_the_example_alone(name, mode):
    layer = _layer(name)
    mask = tf.sequence_mask(LENGTHS, LENGTH)
    # The padding after an example is NaN, which would be visible wherever it had an effect.
    x = tf.where(mask[:, :, None], _inputs(LENGTH), np.nan)
    x = tf.where(mask[:, :, None], x, 1e3)
    past = _past(layer)
    segment = {"input": x, "past": past, "lengths": tf.constant(LENGTHS)}
    found = in_mode(lambda segment: _after(layer, segment, mask), mode)(segment)
    for row, length in enumerate(LENGTHS):
        before = tf.nest.map_structure(lambda leaf, row=row: leaf[row : row + 1], past)
        expected = before
        if length:
            expected = _after(layer, {"input": x[row : row + 1, :length], "past": before})
        for name in past:
            assert found[name].shape == past[name].shape, name
            # Two solves to 1e-6 of a state's norm.
            np.testing.assert_allclose(found[name][row], expected[name][0], atol=3e-5)
            assert found[name].dtype == past[name].dtype


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_full_lengths_are_none(name):
    layer = _layer(name)
    segment = {"input": _inputs(LENGTH), "past": _past(layer)}
    expected = _after(layer, segment)
    found = _after(layer, {**segment, "lengths": tf.fill([4], LENGTH)})
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.slow
def test_the_mask_of_a_segment_as_keras_hands_it_on():
    layer = _layer("span 4")
    x = tf.where(tf.sequence_mask(LENGTHS, LENGTH)[:, :, None], _inputs(LENGTH), 0.0)
    segment = {"input": keras.layers.Masking()(x), "past": _past(layer)}
    z = layer(segment)
    expected = layer({**segment, "input": x}, mask=tf.sequence_mask(LENGTHS, LENGTH))
    np.testing.assert_allclose(z, expected, atol=1e-5)
    np.testing.assert_array_equal(z[1, 3:], tf.zeros([3, WIDTH]))


def test_lengths_without_a_past_are_refused():
    cell = TrellisCell(WIDTH)
    with pytest.raises(ValueError, match="a dict of input and past"):
        cell.inject({"input": _inputs(3), "lengths": tf.constant(LENGTHS)})
