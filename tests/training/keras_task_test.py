"""Tests of tfdeq.training.keras_task."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.trainer_cases import CONFIG
from tfdeq.data.examples import Examples
from tfdeq.runs.measures import CROSS_ENTROPY
from tfdeq.training.keras_task import keras_experiment
from tfdeq.training.task import CallSettings, Score

ACCURACY = Score("accuracy", lower_is_better=False)
MEASURES = {"loss": CROSS_ENTROPY, "accuracy": "sparse_categorical_accuracy"}


def split(count, seed):
    random = np.random.default_rng(seed)
    return random.normal(size=(count, 3)).astype("float32"), random.integers(0, 2, count)


EXAMPLES = Examples(split(20, 0), split(7, 1), split(11, 2))


def make(measures=MEASURES, score=ACCURACY, depth=0):
    keras.utils.set_random_seed(0)
    x, z, v = keras.Input((3,), name="x"), keras.Input((3,)), keras.Input((3,))
    cell = keras.Model([z, v], keras.ops.tanh(0.5 * z + v))
    layer = tfdeq.DEQLayer(cell, tfdeq.FixedPointIteration(6, 1e-6), explicit_steps=depth)
    model = keras.Model(x, keras.layers.Dense(2)(layer(x)))
    config = {**CONFIG, "depth": depth}
    return keras_experiment(model, config, EXAMPLES, measures, score, "points"), cell, model


def by_hand(cell, model, inputs, targets, steps):
    z, inputs = tf.zeros_like(inputs), tf.constant(inputs)
    for _ in range(steps):
        z = cell([z, inputs])
    logits = np.asarray(model.layers[-1](z))
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(targets)), targets], (logits.argmax(axis=1) == targets)


@pytest.mark.parametrize("steps", [{"explicit_steps": 2}, {"max_steps": 3}])
def test_the_loss_and_the_measures_are_means_over_the_batch(steps):
    made, cell, model = make()
    settings = CallSettings(
        steps.get("explicit_steps", 0), tf.constant(steps.get("max_steps", 1)), True
    )
    found = made.task.loss(EXAMPLES.train, settings, ())
    # A solve returns a state with a known residual, so its last evaluation is at that state.
    applied = steps.get("explicit_steps") or steps["max_steps"] - 1
    losses, right = by_hand(cell, model, *EXAMPLES.train, applied)
    assert float(found.value) == pytest.approx(losses.mean(), rel=1e-5)
    assert float(found.measures["accuracy"]) == pytest.approx(right.mean(), rel=1e-6)


@pytest.mark.parametrize("depth", [0, 2])
def test_each_example_of_the_test_counts_once_at_each_budget(depth):
    made, cell, model = make(depth=depth)
    found = made.test()
    assert found["examples"] == 11
    assert list(found["by_budget"]) == ["0.5", "1.0", "2.0", "4.0"]
    for budget, row in found["by_budget"].items():
        steps = round(float(budget) * (depth or CONFIG["max_steps"]))
        assert row["steps"] <= steps
        losses, right = by_hand(cell, model, *EXAMPLES.test, steps if depth else steps - 1)
        assert row["loss"] == pytest.approx(losses.mean(), rel=1e-4)
        assert row["accuracy"] == pytest.approx(right.mean())
    _, right = by_hand(cell, model, *EXAMPLES.test, depth or CONFIG["max_steps"])
    assert found["standard_error"] == pytest.approx(right.std(ddof=1) / np.sqrt(11), rel=1e-5)


def test_an_epoch_is_all_of_the_training_examples():
    made, *_ = make()
    batches = iter(made.task.batches(0, 0, 1))
    seen = np.concatenate([next(batches)[0] for _ in range(5)])
    np.testing.assert_array_equal(np.sort(seen, axis=0), np.sort(EXAMPLES.train[0], axis=0))


@pytest.mark.parametrize("measures", [{"accuracy": MEASURES["accuracy"]}, {"loss": CROSS_ENTROPY}])
def test_loss_and_score_must_be_among_the_measures(measures):
    with pytest.raises(ValueError, match='must have "loss" and the score'):
        make(measures)
