"""GroupAttention: which places see each other, and that it treats all places alike."""

import numpy as np
import pytest
import tensorflow as tf

from tfdeq.cells import GroupAttention


def _floats(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def _seen(kinds, place, size=4):
    """The places whose state the given place's new state depends on."""
    cell = GroupAttention(6, 3 if len(kinds) == 3 else 2, kinds=kinds)
    x, z = cell.inject(_floats(1, size, size, 6)), tf.constant(_floats(1, size, size, 6, seed=1))
    with tf.GradientTape() as tape:
        tape.watch(z)
        result = tf.reduce_sum(cell(z, x)[0, place[0], place[1]] ** 2)
    gradient = np.abs(tape.gradient(result, z)[0]).max(-1)
    return {tuple(map(int, found)) for found in np.argwhere(gradient > 0)}


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("row",), {(1, j) for j in range(4)}),
        (("column",), {(i, 2) for i in range(4)}),
        (("box",), {(0, 2), (0, 3), (1, 2), (1, 3)}),
        (("row", "column"), {(1, j) for j in range(4)} | {(i, 2) for i in range(4)}),
    ],
)
def test_what_a_place_sees(kinds, expected):
    assert _seen(kinds, (1, 2)) == expected


def test_one_application():
    """The formula in the docstring, place by place in NumPy, for rows only."""
    cell = GroupAttention(4, 2, kinds=["row"])
    z, x = _floats(1, 3, 3, 4), _floats(1, 3, 3, 4, seed=1)
    result = cell(z, cell.inject(x))

    def norm(v):
        return v / np.sqrt((v**2).mean(-1, keepdims=True) + 1e-5)

    def gelu(v):
        return 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))

    kernels = {
        name: getattr(cell, name).kernel.numpy()
        for name in ("query_key_value", "injection", "attention_output", "expand", "contract")
    }
    projected = norm(z) @ kernels["query_key_value"] + x @ kernels["injection"]
    query, key, value = np.split(
        projected.reshape(3, 3, 3, 2, 2), 3, axis=2
    )  # row, place, 1, head, 2
    attended = np.zeros((1, 3, 3, 4), "float32")
    for row in range(3):
        for head in range(2):
            q, k, v = (part[row, :, 0, head] for part in (query, key, value))
            logits = norm(q) @ norm(k).T * np.exp(cell.sharpness.numpy()[head])
            weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            attended[0, row, :, 2 * head : 2 * head + 2] = weights @ v
    a = x + attended @ kernels["attention_output"]
    expected = a + gelu(norm(a) @ kernels["expand"]) @ kernels["contract"]
    np.testing.assert_allclose(result, expected, atol=5e-6)  # float32, two norms and a softmax


def test_rows_and_places_are_treated_alike():
    """Exchanging rows of a band, bands, or rows for columns exchanges the answers."""
    cell = GroupAttention(6, 3)
    z, x = _floats(1, 4, 4, 6), _floats(1, 4, 4, 6, seed=1)
    result = cell(z, cell.inject(x)).numpy()
    for order in ([1, 0, 2, 3], [2, 3, 0, 1], [3, 2, 1, 0]):
        moved = cell(z[:, order], cell.inject(x[:, order]))
        np.testing.assert_allclose(moved, result[:, order], atol=2e-6)  # other orders of sums


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 6, "heads": 4}, "received width 6, heads 4, kinds row, column, box"),
        ({"width": 6, "heads": 3, "kinds": ["diagonal"]}, "kinds must be some of row, column, box"),
        ({"width": 6, "heads": 3, "recurrent_scale": -1.0}, "recurrent_scale must be >= 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        GroupAttention(**settings)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 5, 5, 6), "Boxes are √n × √n"), ((1, 4, 5, 6), r"x must be \[batch, n, n, 6\]")],
)
def test_bad_inputs(shape, message):
    with pytest.raises(ValueError, match=message):
        GroupAttention(6, 3).inject(_floats(*shape))
