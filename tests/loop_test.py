import keras
import numpy as np
import pytest
import tensorflow as tf

from trainers import loop
from trainers.workdir import Curves

CONFIG = {
    "depth": 0,
    "shallow_share": 0.5,
    "shallow_steps": 2,
    "jacobian_penalty_end": 0.25,
    "training_max_steps": 4,
    "max_steps": 6,
    "train_steps": 12,
    "log_every": 3,
    "evaluate_every": 6,
    "checkpoint_every": 4,
    "jit_compile": False,
}


def make_trainer(folder, nan_from=None, seen=None, config=CONFIG):
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])

    def batches(start_step):
        for step in range(start_step, 10**6):
            if seen is not None:
                seen.append(step)
            x = np.random.default_rng(step).normal(size=(4, 2)).astype("float32")
            y = x.sum(axis=1, keepdims=True)
            if nan_from is not None and step >= nan_from:
                y = y * np.nan
            yield tf.constant(x), tf.constant(y)

    def loss(model, batch, explicit_steps, max_steps):
        return tf.reduce_mean(tf.square(model(batch[0], training=True) - batch[1]))

    task = loop.Task(
        model=model,
        loss=loss,
        batches=batches,
        evaluate=lambda: {"error": 0.5},
        display=lambda row: {"loss": row["loss"]},
        tokens_per_step=4,
        equilibria=(),
    )
    trainer = loop.Trainer(task, config, str(folder), keras.optimizers.Adam(0.1))
    return trainer, model


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole, whole_model = make_trainer(tmp_path / "whole")
    whole.train()
    seen: list[int] = []
    # The first part ends after a checkpoint and some rows beyond it, as a killed process does.
    interrupted, _ = make_trainer(tmp_path / "parts", nan_from=9, seen=seen)
    with pytest.raises(FloatingPointError, match="NaN or Inf in each of the last 3 steps"):
        interrupted.train()
    resumed, resumed_model = make_trainer(tmp_path / "parts", seen=seen)
    columns = resumed.train()
    for whole_weight, resumed_weight in zip(
        whole_model.weights, resumed_model.weights, strict=True
    ):
        np.testing.assert_array_equal(whole_weight.numpy(), resumed_weight.numpy())
    assert seen[-4:] == [8, 9, 10, 11]
    losses = [loss for loss in columns["loss"] if loss is not None]
    expected = Curves(str(tmp_path / "whole" / "curves.jsonl")).columns()["loss"]
    assert losses[:2] == [loss for loss in expected if loss is not None][:2]
    assert columns["step"][-1] == 12


def test_a_step_that_is_not_finite_leaves_finite_weights_and_is_counted(tmp_path):
    trainer, model = make_trainer(tmp_path, nan_from=10)
    columns = trainer.train()
    assert columns["skipped_steps"][-2] == 2
    assert all(np.isfinite(weight.numpy()).all() for weight in model.weights)


def test_explicit_steps_follow_depth_and_the_shallow_start():
    assert [loop.explicit_steps_at(step, CONFIG) for step in (0, 5, 6, 11)] == [2, 2, 0, 0]
    assert loop.explicit_steps_at(11, {**CONFIG, "depth": 4}) == 4
    assert loop.explicit_steps_at(0, {**CONFIG, "shallow_share": 0.0}) == 0


def test_the_budget_grows_from_the_takeover_to_the_end():
    budgets = [loop.max_steps_at(step, CONFIG) for step in range(12)]
    assert budgets == [4, 4, 4, 4, 4, 4, 4, 4, 5, 5, 6, 6]
    assert loop.max_steps_at(11, {**CONFIG, "training_max_steps": 9}) == 9


def test_the_penalty_falls_evenly():
    shares = [loop.penalty_share_at(step, CONFIG) for step in (0, 4, 8)]
    assert shares == pytest.approx([1.0, 0.75, 0.5])
    assert loop.penalty_share_at(11, {**CONFIG, "jacobian_penalty_end": 1.0}) == 1.0
