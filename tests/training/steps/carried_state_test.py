"""Tests of tfdeq.training.steps.carried_state, in the training step that uses it."""

import functools
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import fast
from tests.support.trainer_cases import CONFIG
from tfdeq.baselines import Recurrent
from tfdeq.cells import TransformerCell
from tfdeq.data import training_segments
from tfdeq.models import ExplicitLanguageModel, LanguageModel
from tfdeq.training.devices.strategies import distribute
from tfdeq.training.schedule import StepSettings
from tfdeq.training.steps.carried_state import CarriedState
from tfdeq.training.steps.optimizers import ReducedAdam
from tfdeq.training.steps.training_step import TrainingStep
from tfdeq.training.task import Loss, Task
from tfdeq.training.text.models import continued, token_loss

ROOT = pathlib.Path(__file__).absolute().parents[3]
ROWS, FEATURES, WIDTH = 8, 3, 2
SETTINGS = StepSettings(explicit_steps=0, max_steps=30, penalty_share=0.5)


# --- a small recurrent regression -------------------------------------------------------------------


def _batch(step, bad):
    """Returns x, y and which texts continue: in step 3 every third text begins, in step 0 all."""
    random = np.random.default_rng(step)
    x, y = random.normal(size=(ROWS, FEATURES)), random.normal(size=(ROWS, WIDTH))
    if step in bad:
        y[5] = np.nan  # of one row, on one device
    continues = (np.arange(ROWS) % 3 > 0) if step == 3 else np.full(ROWS, step > 0)
    return x.astype("float32"), y.astype("float32"), continues


def _batches(bad, steps=8):
    found = [np.stack(part) for part in zip(*(_batch(s, bad) for s in range(steps)), strict=True)]

    def batches(shard=0, shards=1):
        rows = slice(shard * ROWS // shards, (shard + 1) * ROWS // shards)
        return tf.data.Dataset.from_tensor_slices(tuple(part[:, rows] for part in found))

    return batches


def _initial(rows):
    return {"count": tf.zeros([rows], tf.int32), "state": tf.zeros([rows, WIDTH])}


def _loss(model, batch, settings, carried):
    x, y, continues = batch
    carried = continued(carried, continues)
    state = tf.tanh(model(x) + 0.5 * carried["state"])
    after = {"count": carried["count"] + 1, "state": tf.stop_gradient(state)}
    return Loss(tf.reduce_mean(tf.square(state - y)), after)


def _regression(strategy=None, bad=(), **config):
    """A step, its model and its batches."""
    strategy = strategy or tf.distribute.get_strategy()
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(WIDTH)])
        optimizer = ReducedAdam(0.1, epsilon=0.01)
    loss = functools.partial(_loss, model)
    task = Task(model, loss, None, None, None, ROWS, (), carried=_initial)
    config = {**CONFIG, "batch_size": ROWS, "gradient_clip": 1e9, **config}
    step = TrainingStep(task, config, optimizer, strategy)
    return step, model, distribute(strategy, _batches(bad))


def _memory_of(step):
    return [variable.numpy() for variable in step.saved["memory"]]


def _expected(weights, batch, memory):
    """Computes the same in numpy: the loss of a step, and the memory after it."""
    (x, y, continues), (count, state), (w, b) = batch, memory, weights
    state = np.tanh(x @ w + b + 0.5 * np.where(continues[:, None], state, 0))
    return np.mean((state - y) ** 2), [np.where(continues, count, 0) + 1, state]


@pytest.mark.parametrize("jit_compile", fast([False], [False, True]))
@pytest.mark.parametrize("parts", fast([1, 4], [1, 2, 4]))
def test_a_step_begins_with_what_the_step_before_left(parts, jit_compile):
    step, model, batches = _regression(accumulation_steps=parts, jit_compile=jit_compile)
    expected = _memory_of(step)
    assert all((leaf == 0).all() for leaf in expected)
    for index in range(5):
        loss, expected = _expected(model.get_weights(), _batch(index, ()), expected)
        step.run(batches, [SETTINGS])
        assert step.report()["loss"] == pytest.approx(loss, rel=1e-5)
        for found, leaf in zip(_memory_of(step), expected, strict=True):
            np.testing.assert_allclose(found, leaf, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(expected[0], [2, 5, 5, 2, 5, 5, 2, 5])


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_that_is_not_finite_leaves_the_memory_as_it_was(parts):
    step, model, batches = _regression(bad=[2], accumulation_steps=parts)
    expected = _memory_of(step)
    for index in range(5):
        before = _memory_of(step)
        _, after = _expected(model.get_weights(), _batch(index, ()), expected)
        step.run(batches, [SETTINGS])
        if index == 2:
            assert int(step.skipped) == 1
            for found, leaf in zip(_memory_of(step), before, strict=True):
                np.testing.assert_array_equal(found, leaf)
        else:
            expected = after
            np.testing.assert_allclose(_memory_of(step)[1], expected[1], rtol=1e-5, atol=1e-6)


def test_several_steps_a_call_hand_it_on_too():
    one, model, batches = _regression(bad=[2])
    for _ in range(6):
        one.run(batches, [SETTINGS])
    several, other, batches = _regression(bad=[2], steps_per_call=4)
    several.run(batches, [SETTINGS] * 4)
    several.run(batches, [SETTINGS] * 2)
    for found, leaf in zip(
        [*_memory_of(several), *other.get_weights()],
        [*_memory_of(one), *model.get_weights()],
        strict=True,
    ):
        np.testing.assert_array_equal(found, leaf)


def test_a_timed_step_goes_on_once():
    """It computes the gradients twice; the first time has no effect."""
    one, model, batches = _regression()
    timed, other, others = _regression()
    for _ in range(3):
        one.run(batches, [SETTINGS])
        timed.run_timed(others, SETTINGS)
    np.testing.assert_array_equal(_memory_of(timed)[0], [3] * ROWS)
    for found, leaf in zip(
        [*_memory_of(timed), *other.get_weights()],
        [*_memory_of(one), *model.get_weights()],
        strict=True,
    ):
        np.testing.assert_array_equal(found, leaf)


def test_without_a_memory_there_is_nothing_to_keep():
    memory = CarriedState(None, ROWS, tf.distribute.get_strategy())
    assert memory.variables == []
    assert memory.rows() == ()
    memory.keep(memory.gathered(()), tf.constant(True), None)


# --- the same on one device and on two --------------------------------------------------------------


def _transformer():
    solver = tfdeq.FixedPointIteration(30, 1e-6)
    return LanguageModel(
        11, 5, TransformerCell(8, 2, 5, recurrent_scale=0.2, span=4), solver=solver
    )


def _gru():
    return ExplicitLanguageModel(11, 5, width=6, network=Recurrent(8, 1, "gru"))


def _language_model(make, strategy, **config):
    keras.utils.set_random_seed(2)
    with strategy.scope():
        model = make()
        model.build((None, 5))
        optimizer = ReducedAdam(0.02, epsilon=0.01)
    tokens = np.random.default_rng(0).integers(0, 11, 150).astype("uint8")

    def batches(shard, shards):
        return training_segments(
            tokens, sequence_length=5, batch_size=ROWS, seed=3, shard=shard, shards=shards
        )

    loss = functools.partial(token_loss, model)
    task = Task(model, loss, None, None, None, ROWS * 5, (), carried=model.initial_memory)
    step = TrainingStep(task, {**CONFIG, "batch_size": ROWS, **config}, optimizer, strategy)
    return step, model, distribute(strategy, batches)


CASES = {
    "regression": lambda strategy: _regression(strategy),
    "in parts, compiled": lambda strategy: _regression(
        strategy, accumulation_steps=2, jit_compile=True
    ),
    "not finite on one device": lambda strategy: _regression(strategy, bad=[2]),
    "transformer in parts": lambda strategy: _language_model(
        _transformer, strategy, accumulation_steps=2
    ),
    "gru": lambda strategy: _language_model(_gru, strategy),
}


def train(name, strategy):
    """Returns losses of five steps, in which a text begins again, and the final memory and weights."""
    step, model, batches = CASES[name](strategy)
    losses = []
    for _ in range(5):
        step.run(batches, [SETTINGS])
        losses.append(step.report()["loss"])
    for variable in step.saved["memory"]:  # each device has all of it
        one, *others = strategy.experimental_local_results(variable)
        for other in others:
            np.testing.assert_array_equal(other, one)
    left = [leaf.tolist() for leaf in [*_memory_of(step), *model.get_weights()]]
    return {"losses": losses, "skipped": int(step.skipped.numpy()), "left": left}


# In a separate process, because logical devices must be created before the first operation.
_TWO_DEVICES = """
import json
from tfdeq.training.devices import strategies
from tests import segment_memory_test as own
strategy = strategies.make_strategy("mirrored", logical_devices=2)
assert strategy.num_replicas_in_sync == 2
print(json.dumps({name: own.train(name, strategy) for name in own.CASES}))
"""


@pytest.fixture(scope="module")
def on_two_devices():
    result = subprocess.run(
        [sys.executable, "-c", _TWO_DEVICES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_devices_are_one(name, on_two_devices):
    """To 1e-5, because sums over rows are rounded in another order."""
    expected, found = train(name, tf.distribute.get_strategy()), on_two_devices[name]
    assert found["skipped"] == expected["skipped"] == ("finite" in name)
    known = [loss is not None for loss in expected["losses"]]
    assert [loss is not None for loss in found["losses"]] == known
    assert np.array(found["losses"])[known] == pytest.approx(
        np.array(expected["losses"])[known], rel=1e-5
    )
    for one, other in zip(found["left"], expected["left"], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
