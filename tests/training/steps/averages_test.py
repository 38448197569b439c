import keras
import numpy as np
import tensorflow as tf

from tfdeq.training.steps.averages import averaged_weights, take_averages


def trained(steps):
    """Returns a weight with values 0, -1, -2, … and an optimiser that averages it with momentum 0.5."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.layers[0].kernel.assign([[0.0]])
    optimizer = keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5)
    optimizer.build(model.trainable_variables)
    for _ in range(steps):
        optimizer.apply([tf.constant([[1.0]])], model.trainable_variables)
    return model, optimizer


def weight(model):
    return float(np.squeeze(model.get_weights()[0]))


def test_the_average_inside_and_the_weights_after():
    model, optimizer = trained(3)  # after the steps: -1, -2, -3
    with averaged_weights(optimizer, model, 0.5):
        assert weight(model) == -2.25  # ((-1) / 2 - 2 / 2) / 2 - 3 / 2
    assert weight(model) == -3.0


def test_the_weights_come_back_after_an_error():
    model, optimizer = trained(3)
    try:
        with averaged_weights(optimizer, model, 0.5):
            raise KeyError
    except KeyError:
        pass
    assert weight(model) == -3.0


def test_no_average_without_momentum_or_before_the_first_update():
    model, optimizer = trained(3)
    with averaged_weights(optimizer, model, 0.0):
        assert weight(model) == -3.0
    model, optimizer = trained(0)
    model.layers[0].kernel.assign([[7.0]])
    take_averages(optimizer, model, 0.5)
    assert weight(model) == 7.0


def test_for_good():
    model, optimizer = trained(3)
    take_averages(optimizer, model, 0.5)
    assert weight(model) == -2.25
