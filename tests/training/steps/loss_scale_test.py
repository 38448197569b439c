import pytest
import tensorflow as tf

from tfdeq.training.steps import loss_scale
from tfdeq.training.steps.loss_scale import LossScale


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_precisions_with_float32s_exponents_have_none(precision):
    scale = LossScale(precision)
    loss = tf.constant(3.0)
    assert scale.scaled(loss) is loss
    assert scale.unscaled([loss])[0] is loss
    assert scale.variables == []
    scale.update(tf.constant(False), tf.constant(True))


def test_halves_on_overflow_and_doubles_after_good_steps(monkeypatch):
    monkeypatch.setattr(loss_scale, "_GROWTH_STEPS", 3)
    scale = LossScale("mixed_float16")
    seen = []
    for finite in (False, True, True, True, True, False):
        scale.update(tf.constant(finite), tf.constant(True))
        seen.append(float(scale.value()))
    assert seen == [2.0**14, 2.0**14, 2.0**14, 2.0**15, 2.0**15, 2.0**14]


def test_what_is_no_step_changes_nothing():
    scale = LossScale("mixed_float16")
    scale.update(tf.constant(False), tf.constant(False))
    assert float(scale.value()) == 2.0**15


def test_never_below_one():
    scale = LossScale("mixed_float16")
    for _ in range(20):
        scale.update(tf.constant(False), tf.constant(True))
    assert float(scale.value()) == 1.0


def test_the_gradient_is_that_of_the_loss():
    scale = LossScale("mixed_float16")
    x = tf.Variable(2.0)
    with tf.GradientTape() as tape:
        loss = scale.scaled(x * x)
    (gradient,) = scale.unscaled(tape.gradient(loss, [x]))
    assert float(loss) == 4.0 * 2**15
    assert float(gradient) == 4.0
