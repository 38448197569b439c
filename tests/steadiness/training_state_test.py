"""Tests of tfdeq.steadiness.training_state."""

import keras
import numpy as np
import pytest

from tfdeq.steadiness.training_state import TrainingState


def _model():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.BatchNormalization()(keras.layers.Dense(2)(inputs)))
    model.compile(keras.optimizers.Adam(0.1), "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def test_everything_that_training_changes_comes_back():
    model = _model()
    x = np.random.default_rng(0).normal(size=(8, 2)).astype("float32")
    model.fit(x, x, verbose=0)
    variables = [*model.weights, *model.optimizer.variables]
    before = [np.array(each) for each in variables]
    state = TrainingState(model)
    model.fit(x, x, verbose=0)
    changed = [
        np.any(each != old) for each, old in zip(map(np.array, variables), before, strict=True)
    ]
    assert sum(changed) > 6
    state.restore()
    for variable, old in zip(variables, before, strict=True):
        np.testing.assert_array_equal(variable, old)


@pytest.mark.parametrize("where", ["weight", "slot"])
def test_nan_is_seen(where):
    model = _model()
    assert TrainingState(model).finite
    variables = model.weights if where == "weight" else model.optimizer.variables
    variables[-1].assign(np.full(variables[-1].shape, np.nan, "float32"))
    assert not TrainingState(model).finite
