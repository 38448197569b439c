"""Tests of the rows of a batch that DEQLayer's Jacobian penalty is estimated on."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, fast, in_mode
from tfdeq.steadiness.layer_penalty import automatic_weight


@keras.saving.register_keras_serializable(package="tfdeq_tests")
class ScaledCell(keras.layers.Layer):
    """f(z, x) = s z + x["add"], with s = x["scale"] of each sample times a factor that all samples share.

    With signs as noise, the penalty of these rows is exactly the mean of their (s · shared)².
    """

    def initial_state(self, x):
        return tf.zeros_like(x["add"])

    def inject(self, x):
        return {**x, "shared": tf.constant([[0.5, 0.5]])}

    def call(self, z, x, mask=None):
        f_z = z * x["scale"] * x["shared"] + x["add"]
        return f_z if mask is None else tf.where(mask["add"][:, None], f_z, 0.0)


def _layer(fraction):
    return tfdeq.DEQLayer(
        ScaledCell(), "anderson", jacobian_penalty=1.0, jacobian_penalty_fraction=fraction
    )


def _x(scales):
    scales = tf.constant(scales, tf.float32)[:, None]
    return {"add": tf.ones([scales.shape[0], 2]), "scale": scales}


def _penalty(layer, mode, unknown_batch=False):
    """Returns x -> the layer's penalty; graphs do not know the batch size."""

    def penalty(x):
        layer(x, training=True)
        return tf.add_n(layer.losses)

    penalty = in_mode(penalty, mode)
    if not unknown_batch:
        return penalty
    signature = {"add": tf.TensorSpec([None, 2]), "scale": tf.TensorSpec([None, 1])}
    return penalty.get_concrete_function(signature)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("fraction", "rows"), fast([(0.6, 3)], [(0.25, 1), (0.6, 3)]))
def test_rows_are_drawn_without_repetition_and_each_has_its_turn(fraction, rows, mode):
    layer = _layer(fraction)
    scales = np.array([0.1, 0.2, 0.4, 0.8])
    layer(_x(scales))
    for unknown_batch in (False, True) if mode != "eager" else (False,):
        penalty = _penalty(layer, mode, unknown_batch)
        values = np.array([float(penalty(_x(scales))) for _ in range(60)])
        # (4 / 2)² s² with powers of two, so that a mean of squares shows which rows it is of.
        sums = values * rows / 0.25
        chosen = [[row for row in range(4) if round(s / 0.01) & (1 << (2 * row))] for s in sums]
        assert all(len(each) == rows for each in chosen)
        assert {row for each in chosen for row in each} == {0, 1, 2, 3}
        # 60 draws of one row of four: within four standard deviations, 15 ± 4 · 3.4.
        counts = np.bincount(np.concatenate(chosen), minlength=4)
        assert np.abs(counts - 15 * rows).max() < 14


def test_the_same_seed_draws_the_same_rows():
    def run():
        keras.utils.set_random_seed(7)
        layer = _layer(0.5)
        penalty = _penalty(layer, "graph")
        return [float(penalty(_x([0.1, 0.2, 0.4, 0.8]))) for _ in range(8)]

    first = run()
    assert first == run()
    assert len(set(first)) == 2  # every second row, starting from the first or the second


@pytest.mark.slow
def test_masks_go_along_with_their_rows():
    """Rows in which the mask makes f zero add nothing."""
    layer = _layer(0.5)
    x = _x([0.5, 0.5, 0.5, 0.5])
    mask = {"add": tf.constant([True, True, False, True]), "scale": None}
    values = set()
    for _ in range(20):
        layer(x, training=True, mask=mask)
        values.add(round(float(layer.losses[0]) / 0.0625, 5))
    assert values == {0.5, 1.0}


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_of_one_and_an_empty_one(mode):
    layer = _layer(0.25)
    layer(_x([0.5]))
    penalty = _penalty(layer, mode, unknown_batch=mode != "eager")
    np.testing.assert_allclose(penalty(_x([0.5])), 0.0625, rtol=1e-6)
    assert float(penalty({"add": tf.zeros([0, 2]), "scale": tf.zeros([0, 1])})) == 0.0


def test_gradient_reaches_the_chosen_rows_of_x():
    layer = _layer(0.5)
    x = _x([0.1, 0.2, 0.4, 0.8])
    with tf.GradientTape() as tape:
        tape.watch(x["scale"])
        layer(x, training=True)
        penalty = layer.losses[0]
    gradient = tf.convert_to_tensor(tape.gradient(penalty, x["scale"])).numpy()[:, 0]
    chosen = gradient > 0
    assert chosen.sum() == 2
    # d/ds of (0.5 s)² / 2
    np.testing.assert_allclose(gradient, 0.25 * x["scale"][:, 0] * chosen, rtol=1e-5)


# --- "auto" -----------------------------------------------------------------------------------------


def test_automatic_weight_follows_the_mean_residual():
    weight = automatic_weight(tf.constant([0.0, 0.5, tf.float32.max, float("nan")]))
    np.testing.assert_allclose(weight, 0.1 + 10 * 2.5 / 4, rtol=1e-6)
    np.testing.assert_allclose(automatic_weight(tf.zeros([0])), 0.1, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", fast([2], [2, 30]))
def test_auto_lets_no_gradient_through_what_is_no_equilibrium(steps, mode):
    """z/2 + 1 from zeros: after two evaluations the residual is 1/3, after thirty it is tiny."""
    solver = tfdeq.FixedPointIteration(max_steps=steps, tolerance=1e-6)
    layer = tfdeq.DEQLayer(ScaledCell(), solver, jacobian_penalty="auto")
    layer(_x([0.5, 0.5]))

    def gradients():
        x = _x([1.0, 1.0])
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            z = layer(x, training=True)
            loss = tf.reduce_sum(z)
        return tape.gradient(loss, x["add"], unconnected_gradients="zero"), layer.losses[0]

    gradient, penalty = in_mode(gradients, mode)()
    # z* = 2 x["add"], for the factors 1/2 that all samples share.
    np.testing.assert_allclose(gradient, np.full([2, 2], 0.0 if steps == 2 else 2.0), rtol=1e-5)
    weight = 0.1 + 10 / 3 if steps == 2 else 0.1
    np.testing.assert_allclose(penalty, weight * 0.25, rtol=1e-4)


def test_auto_survives_the_config_and_other_words_are_refused():
    layer = tfdeq.DEQLayer(ScaledCell(), jacobian_penalty="auto")
    assert layer.get_config()["jacobian_penalty"] == "auto"
    assert layer.get_config()["jacobian_penalty_power_steps"] == 0
    assert tfdeq.DEQLayer.from_config(layer.get_config()).jacobian_penalty == "auto"
    with pytest.raises(ValueError, match="a finite number >= 0, or \"auto\"; received 'some'"):
        tfdeq.DEQLayer(ScaledCell(), jacobian_penalty="some")
