"""Tests of tfdeq.cells.transformer: texts in segments, each with a past."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import fast, in_mode
from tfdeq.cells import TransformerCell

WIDTH, HEADS, LENGTH, SPAN = 8, 2, 9, 4
SEGMENTS = (3, 1, 1, 4)  # including segments shorter than the span of attention


def _inputs(batch=2, length=LENGTH, dtype="float64", seed=0):
    x = np.random.default_rng(seed).normal(size=(batch, length, WIDTH))
    return tf.constant(x.astype(dtype))


def _layer(tolerance=1e-12, dtype="float64", **settings):
    """Returns a built layer, whose biases of distances are not multiples of each other."""
    settings = {"span": SPAN, "recurrent_scale": 0.3, **settings}
    keras.utils.set_random_seed(0)
    # Pieces and whole texts may have any length: with a span, sequence_length has no effect.
    cell = TransformerCell(WIDTH, HEADS, 2, dtype=dtype, **settings)
    solver = tfdeq.FixedPointIteration(max_steps=150, tolerance=tolerance)
    layer = tfdeq.DEQLayer(cell, solver, dtype=dtype)
    layer.build((None, LENGTH, WIDTH))
    table = cell.distance_bias.table.embeddings
    table.assign(table + np.random.default_rng(1).normal(size=table.shape))
    return layer


def _solve(layer):
    """Returns (x, past) -> (solution, the past after it), one graph for segments of any size."""
    places = [None, HEADS, layer.cell.span - 1, WIDTH // HEADS]
    dtype = layer.compute_dtype
    past = {
        "key": tf.TensorSpec(places, dtype),
        "value": tf.TensorSpec(places, dtype),
        "length": tf.TensorSpec([None], tf.int32),
    }

    @tf.function(input_signature=[tf.TensorSpec([None, None, WIDTH], dtype), past], autograph=False)
    def solve(x, past):
        segment = {"input": x, "past": past}
        solution = layer(segment, return_solution=True)
        return solution, layer.cell.remember(solution.z, layer.cell.inject(segment))

    return solve


def _whole(layer, x):
    """Returns the solution of a whole text."""
    return tf.function(lambda x: layer(x, return_solution=True), autograph=False)(x)


def _in_segments(layer, x, lengths, past=None):
    """Returns the joined equilibria [B, T, d] of the pieces, and the past after the last one."""
    x, solve, parts = tf.cast(x, layer.compute_dtype), _solve(layer), []
    past = layer.cell.initial_past(x) if past is None else past
    for piece in tf.split(x, lengths, axis=1):
        solution, past = solve(piece, past)
        assert solution.converged.numpy().all()
        parts.append(solution.z)
    return tf.concat(parts, axis=1), past


def _past(layer, batch=2):
    """Returns a past that is shorter for each further example, so that some places are empty."""
    places = layer.cell.span - 1
    shape = [batch, HEADS, places, WIDTH // HEADS]
    random = np.random.default_rng(2)
    return {
        "key": tf.constant(random.normal(size=shape)),
        "value": tf.constant(random.normal(size=shape)),
        "length": tf.constant([max(places - row, 0) for row in range(batch)]),
    }


@pytest.mark.parametrize(
    ("norm", "query_key_norm"),
    fast([("pre", False)], [("pre", False), ("post", False), ("pre", True)]),
)
@pytest.mark.parametrize("span", fast([4], [1, 2, 4, 50]))
def test_segments_are_one_long_text(span, norm, query_key_norm):
    """Up to rounding, because each is solved to 1e-12 of the norm of its own state."""
    layer, x = _layer(span=span, norm=norm, query_key_norm=query_key_norm), _inputs()
    whole = _whole(layer, x)
    pieces, past = _in_segments(layer, x, SEGMENTS)
    np.testing.assert_allclose(pieces, whole.z, atol=1e-9)
    # The remaining past is that of the whole text: the keys and values of its last positions.
    at_end = layer.cell.remember(whole.z, layer.cell.inject(x))
    places = span - 1
    taken = min(places, LENGTH)
    np.testing.assert_array_equal(past["length"], [taken, taken])
    for name in ("key", "value"):
        assert past[name].shape == (2, HEADS, places, WIDTH // HEADS)
        last = past[name][:, :, places - taken :]
        np.testing.assert_allclose(last, at_end[name][:, :, LENGTH - taken :], atol=1e-9)


@pytest.mark.slow
def test_segments_are_one_long_text_in_float32():
    layer = _layer(tolerance=1e-6, dtype="float32")
    x = _inputs(dtype="float32")
    pieces, _ = _in_segments(layer, x, SEGMENTS)
    # Both stop at 1e-6 of the norm of all positions together, here about 10.
    np.testing.assert_allclose(pieces, _whole(layer, x).z, atol=3e-5)


@pytest.mark.parametrize("span", fast([SPAN], [1, SPAN]))
@pytest.mark.slow
def test_a_fresh_past_is_none(span):
    layer, x = _layer(span=span), _inputs()
    fresh = layer.cell.initial_past(x)
    assert fresh["key"].shape == fresh["value"].shape == (2, HEADS, span - 1, WIDTH // HEADS)
    assert all((leaf.numpy() == 0).all() for leaf in fresh.values())
    expected = _whole(layer, x)
    actual, _ = _solve(layer)(x, fresh)
    np.testing.assert_array_equal(actual.steps, expected.steps)
    np.testing.assert_allclose(actual.z, expected.z, atol=1e-11)


def test_places_that_are_not_taken_are_not_looked_at():
    layer, x = _layer(), _inputs()
    past = _past(layer)
    solve = _solve(layer)
    before = solve(x, past)[0].z
    taken = np.arange(SPAN - 1) >= SPAN - 1 - past["length"].numpy()[:, None]
    other = {name: tf.where(taken[:, None, :, None], past[name], 1e3) for name in ("key", "value")}
    after = solve(x, {**past, **other})[0].z
    np.testing.assert_array_equal(after, before)
    # Filled places are seen: the first position changes, and through it those that see no past.
    moved = solve(x, {**past, "value": past["value"] + 1.0})[0].z - before
    assert (np.abs(moved).max(axis=-1) > 1e-7).all()


def _with_past(cell, z, x, past):
    """Computes the sums of attention by definition, place by place, and the rest by the cell's layers."""

    def norm(y):
        return y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)

    size = WIDTH // HEADS
    table = cell.distance_bias.table.embeddings.numpy()
    projected = norm(z) @ cell.query_key_value.kernel.numpy() + x @ cell.injection.kernel.numpy()
    q, k, v = np.split(projected.reshape(*z.shape[:2], 3, HEADS, size), 3, axis=2)
    attended = np.zeros([*z.shape[:2], HEADS, size])
    for b, t, h in np.ndindex(*z.shape[:2], HEADS):
        seen = [(t - s, k[b, s, 0, h], v[b, s, 0, h]) for s in range(t + 1)]
        for back in range(1, past["length"][b] + 1):  # the newest place is just before position 0
            seen.append((t + back, past["key"][b, h, -back], past["value"][b, h, -back]))
        seen = [one for one in seen if one[0] < cell.span]
        scores = [q[b, t, 0, h] @ key / np.sqrt(size) + table[d, h] for d, key, _ in seen]
        shares = np.exp(scores) / np.exp(scores).sum()
        attended[b, t, h] = sum(s * value for s, (_, _, value) in zip(shares, seen, strict=True))
    a = x + cell.attention_output(attended.reshape(z.shape)).numpy()
    return a + cell.contract(keras.ops.gelu(cell.expand(norm(a)), approximate=True)).numpy()


@pytest.mark.parametrize("span", [1, 2, SPAN, 12])
def test_one_application_with_a_past_is_the_documented_equation(span):
    layer, x, z = _layer(span=span), _inputs(length=5), _inputs(length=5, seed=3)
    past = _past(layer)
    actual = layer.cell(z, layer.cell.inject({"input": x, "past": past}))
    expected = _with_past(
        layer.cell, z.numpy(), x.numpy(), {name: w.numpy() for name, w in past.items()}
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.slow
def test_rows_of_a_batch_have_pasts_of_their_own():
    """One text begins while the other continues; each has the same result as alone."""
    layer, x = _layer(), _inputs()
    _, past = _in_segments(layer, x, (LENGTH,))
    goes_on = tf.constant([True, False])
    past = {
        name: tf.where(tf.reshape(goes_on, [2] + [1] * (len(w.shape) - 1)), w, tf.zeros_like(w))
        for name, w in past.items()
    }
    later = _inputs(seed=4)
    z, after = _in_segments(layer, later, (2, LENGTH - 2), past)
    np.testing.assert_allclose(z[1], _whole(layer, later).z[1], atol=1e-9)
    whole = _whole(layer, tf.concat([x, later], axis=1)).z
    np.testing.assert_allclose(z[0], whole[0, LENGTH:], atol=1e-9)
    np.testing.assert_array_equal(after["length"], [SPAN - 1] * 2)


def test_length_counts_until_the_places_are_taken():
    layer = _layer(span=6)
    cell, past = layer.cell, layer.cell.initial_past(_inputs())
    for piece, expected in ((2, 2), (1, 3), (4, 5), (1, 5)):
        x = _inputs(length=piece)
        past = cell.remember(x, cell.inject({"input": x, "past": past}))
        np.testing.assert_array_equal(past["length"], [expected] * 2)
        assert past["length"].dtype == tf.int32


@pytest.mark.slow
def test_modes_agree_on_a_segment():
    layer, x = _layer(), _inputs()
    past = _past(layer)

    def solve(x, past):
        segment = {"input": x, "past": past}
        solution = layer(segment, return_solution=True)
        return solution, layer.cell.remember(solution.z, layer.cell.inject(segment))

    expected, remembered = solve(x, past)
    for mode in ("graph", "xla"):
        actual, also = in_mode(solve, mode)(x, past)
        assert actual.converged.numpy().all()
        np.testing.assert_array_equal(actual.steps, expected.steps)
        np.testing.assert_allclose(actual.z, expected.z, atol=1e-10)
        for name in remembered:
            np.testing.assert_allclose(also[name], remembered[name], atol=1e-10)


def test_an_examples_answer_does_not_depend_on_its_neighbours():
    """Rows leave the batch when they are done, together with their past."""
    layer, x = _layer(), _inputs(batch=3)
    past = _past(layer, batch=3)
    tolerance = tf.constant([1e-12, 1e-2, 1e-6], tf.float64)
    solve = tf.function(
        lambda x, past, tolerance: layer(
            {"input": x, "past": past}, tolerance=tolerance, return_solution=True
        ),
        autograph=False,
        reduce_retracing=True,
    )
    together = solve(x, past, tolerance)
    assert len(set(together.steps.numpy())) == 3
    for row in range(3):
        one = slice(row, row + 1)
        alone = solve(x[one], {name: w[one] for name, w in past.items()}, tolerance[one])
        assert alone.steps[0] == together.steps[row]
        np.testing.assert_allclose(alone.z[0], together.z[row], rtol=1e-9, atol=1e-10)


@pytest.mark.slow
def test_padding_behind_a_segment_is_zero_and_changes_nothing():
    layer, x = _layer(), _inputs()
    past = _past(layer)
    mask = tf.constant([[True] * 4 + [False] * 5] * 2)
    segment = {"input": x, "past": past}
    padded = in_mode(lambda: layer(segment, mask=mask, return_solution=True), "graph")()
    short, _ = _solve(layer)(x[:, :4], past)
    np.testing.assert_array_equal(padded.z[:, 4:], np.zeros([2, 5, WIDTH]))
    np.testing.assert_allclose(padded.z[:, :4], short.z, atol=1e-10)
    np.testing.assert_array_equal(padded.steps, short.steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "mode"), fast([("post", "graph")], [("pre", "xla"), ("post", "graph")])
)
def test_gradients_are_those_of_finite_differences(norm, mode):
    """For the input, the past and every weight, each along a random direction."""
    layer, x = _layer(tolerance=1e-13, norm=norm), _inputs(length=4)
    past = _past(layer)
    variables = layer.trainable_variables
    floats = {name: past[name] for name in ("key", "value")}
    weights = tf.constant(np.random.default_rng(5).normal(size=x.shape))

    @tf.function(autograph=False)
    def loss_of(x, floats):
        return tf.reduce_sum(weights * layer({"input": x, "past": {**past, **floats}}))

    def gradients(x, floats):
        with tf.GradientTape() as tape:
            tape.watch([x, floats])
            loss = loss_of(x, floats)
        found = tape.gradient(loss, [x, floats, [variable.value for variable in variables]])
        return tf.nest.map_structure(tf.convert_to_tensor, found)

    d_x, d_floats, d_theta = in_mode(gradients, mode)(x, floats)
    random = np.random.default_rng(6)

    def check(gradient, shape, loss_at, name):
        direction = random.normal(size=shape)
        step = 1e-6
        difference = (loss_at(step * direction) - loss_at(-step * direction)) / (2 * step)
        found = np.sum(gradient * direction)
        # Differences of 1e-6 have errors of about 1e-9 from rounding, and 1e-12 from curvature.
        assert float(difference) == pytest.approx(float(found), rel=1e-6, abs=1e-8), name
        assert np.abs(gradient).max() > 1e-6, name

    check(d_x, x.shape, lambda move: loss_of(x + move, floats), "x")
    for name, at in floats.items():
        moved = lambda move, name=name, at=at: loss_of(x, {**floats, name: at + move})  # noqa: E731
        check(d_floats[name], at.shape, moved, name)
    for variable, gradient in zip(variables, d_theta, strict=True):
        at = variable.numpy()

        def loss_at(move, variable=variable, at=at):
            variable.assign(at + move)
            loss = loss_of(x, floats)
            variable.assign(at)
            return loss

        check(gradient, at.shape, loss_at, variable.path)


@pytest.mark.slow
def test_locked_dropout_is_constant_in_a_segments_solve():
    layer = _layer(tolerance=1e-9, dropout=0.3, locked_dropout=True)
    segment = {"input": _inputs(), "past": _past(layer)}
    solve = in_mode(lambda: layer(segment, training=True, return_solution=True), "graph")
    noisy = solve()
    assert noisy.converged.numpy().all()
    still, _ = _solve(layer)(segment["input"], segment["past"])
    assert np.abs(noisy.z - still.z).max() > 1e-2
    assert np.abs(noisy.z - solve().z).max() > 1e-2  # another call, another mask


@pytest.mark.slow
def test_mixed_bfloat16_remembers_in_its_own_precision():
    layer = _layer(tolerance=1e-2, dtype="mixed_bfloat16")
    x = _inputs(dtype="float32")
    z, past = _in_segments(layer, x, SEGMENTS)
    assert z.dtype == tf.float32  # the solver's
    assert past["key"].dtype == past["value"].dtype == tf.bfloat16
    exact = _layer(tolerance=1e-6, dtype="float32")
    exact.set_weights(layer.get_weights())
    # bfloat16 has 8 bits, states here reach 3, and the solves stop at 1e-2.
    np.testing.assert_allclose(tf.cast(z, tf.float32), _whole(exact, x).z, atol=0.1)


def test_a_cell_without_a_span_has_no_past():
    cell = TransformerCell(WIDTH, HEADS, 5)
    with pytest.raises(
        ValueError, match=r"Only a cell with a span.*sequence_length=5 positions\. Give it a"
    ):
        cell.initial_past(_inputs())
