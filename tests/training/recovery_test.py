"""Steps that go wrong are skipped and counted; after several in a row the run returns to a checkpoint."""

import os
import signal

import keras
import numpy as np
import pytest

from tests.support.checkpoint_cases import saved_numbers
from tests.support.trainer_cases import CONFIG, make_trainer, weights_of
from tfdeq.programs.preemption import Preempted


def poison_once(at):
    """Makes a weight NaN before a step, the first time that it is made."""
    poisoned = []

    def poison(step, model):
        if step == at and not poisoned:
            poisoned.append(step)
            model.weights[0].assign(np.full([2, 1], np.nan))

    return poison


def test_a_step_that_is_not_finite_leaves_finite_weights_and_is_counted(tmp_path):
    trainer, model = make_trainer(tmp_path, nan_from=10)
    columns = trainer.train()
    assert columns["skipped_steps"][-2] == 2
    assert all(np.isfinite(weight.numpy()).all() for weight in model.weights)


def test_a_skipped_step_changes_nothing(tmp_path):
    """The run with bad batches equals one that never saw them, except for the lost steps."""
    trainer, model = make_trainer(tmp_path / "bad", nan_from=10)
    columns = trainer.train()
    short, short_model = make_trainer(tmp_path / "short", config={**CONFIG, "train_steps": 10})
    short.train()
    for weight, expected in zip(weights_of(model), weights_of(short_model), strict=True):
        np.testing.assert_array_equal(weight, expected)
    assert columns["all_skipped_steps"] == 2
    assert columns["rollbacks"] == 0


def test_steps_that_go_wrong_in_a_row_return_the_run_to_its_last_checkpoint(tmp_path):
    """Steps 9 to 11 go wrong the first time: the run returns to step 8, with half the learning rate."""
    seen = []
    config = {**CONFIG, "max_rollbacks": 1}
    trainer, model = make_trainer(tmp_path, nan_from=9, nan_once=True, config=config, seen=seen)
    columns = trainer.train()
    # In between, the diagnosis uses the batch of the last finite report.
    assert seen == [*range(12), 9, *range(8, 12)]
    assert columns["rollbacks"] == 1
    assert columns["all_skipped_steps"] == 3
    assert [rate for rate in columns["learning_rate"] if rate][-1] == pytest.approx(0.05)
    assert all(np.isfinite(weight).all() for weight in weights_of(model))


def test_poisoned_weights_are_replaced_by_the_last_good_ones(tmp_path):
    trainer, model = make_trainer(
        tmp_path, config={**CONFIG, "max_rollbacks": 1}, at_step=poison_once(9)
    )
    columns = trainer.train()
    assert columns["rollbacks"] == 1
    assert columns["all_skipped_steps"] == 3
    assert all(np.isfinite(weight).all() for weight in weights_of(model))
    # No checkpoint of the bad steps was written.
    again, again_model = make_trainer(tmp_path, config={**CONFIG, "max_rollbacks": 1})
    again.train()
    for weight, expected in zip(weights_of(again_model), weights_of(model), strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_poisoned_weights_at_the_very_end_do_not_become_the_result(tmp_path):
    trainer, model = make_trainer(
        tmp_path, config={**CONFIG, "max_rollbacks": 1}, at_step=poison_once(11)
    )
    assert trainer.train()["rollbacks"] == 1
    assert all(np.isfinite(weight).all() for weight in weights_of(model))


def test_a_return_takes_statistics_and_generators_with_it(tmp_path):
    """Here they depend only on the batches, so they end as in a run without problems."""

    def layers():
        return [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5, seed=5)]

    def spoil(step, model):
        if step == 9 and not spoilt:
            spoilt.append(step)
            model.layers[-1].kernel.assign(np.full([2, 1], np.nan))
            for variable in model.non_trainable_variables:
                variable.assign(variable + 7)

    spoilt = []
    config = {**CONFIG, "max_rollbacks": 1}
    trainer, model = make_trainer(tmp_path / "1", config=config, at_step=spoil, layers=layers())
    assert trainer.train()["rollbacks"] == 1
    good, expected = make_trainer(tmp_path / "2", config=config, layers=layers())
    good.train()
    assert len(model.non_trainable_variables) == 3
    for variable, known in zip(
        model.non_trainable_variables, expected.non_trainable_variables, strict=True
    ):
        np.testing.assert_array_equal(variable.numpy(), known.numpy(), err_msg=variable.path)


def test_a_run_that_keeps_diverging_ends_with_a_diagnosis(tmp_path):
    trainer, _ = make_trainer(tmp_path, nan_from=9, config={**CONFIG, "train_steps": 30})
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    text = str(caught.value)
    assert "in each of the last 3 steps, up to step 12" in text
    assert "The last finite report, at step 9: gradient_norm" in text
    assert "spectral_radius 0.7" in text
    assert "--learning_rate" in text


def spoil_once(at, value=1e4):
    """Makes a weight huge before a step, the first time that it is made."""
    spoilt = []

    def spoil(step, model):
        if step == at and not spoilt:
            spoilt.append(step)
            model.weights[0].assign(np.full([2, 1], value))

    return spoil


# Only divergence_patience determines when to check.
SELDOM = {**CONFIG, "log_every": 1000, "evaluate_every": 1000, "checkpoint_every": 4}


@pytest.mark.parametrize("config", [CONFIG, SELDOM], ids=["often", "seldom"])
def test_finite_losses_far_above_a_guess_return_the_run_to_its_last_good_checkpoint(
    tmp_path, config, capsys
):
    """From step 5 on the loss is about 1e8: the checkpoint of step 8 is not written."""
    config = {**config, "max_rollbacks": 1}
    trainer, model = make_trainer(tmp_path, config=config, at_step=spoil_once(5), uniform_loss=2.0)
    columns = trainer.train()
    assert columns["rollbacks"] == 1
    assert columns["all_skipped_steps"] == 0
    assert np.abs(model.weights[0].numpy()).max() < 10
    text = capsys.readouterr().out
    assert "a uniform guess has 2 nats" in text
    assert "Going on from step 4 with 0.5 of the learning rate" in text


def test_a_checkpoint_of_weights_that_were_bad_already_is_passed_over(tmp_path, capsys):
    """The weights were damaged before step 8, but this was not detected when the checkpoint was written."""

    config = {**CONFIG, "max_rollbacks": 1}
    trainer, model = make_trainer(tmp_path, config=config, uniform_loss=2.0)
    save, spoilt = trainer._state.save, []

    def save_spoilt(step):
        if step == 8 and not spoilt:
            spoilt.append(step)
            model.weights[0].assign(np.full([2, 1], 1e4))
        save(step)

    trainer._state.save = save_spoilt
    assert trainer.train()["rollbacks"] == 1
    assert "Going on from step 4" in capsys.readouterr().out
    assert np.abs(model.weights[0].numpy()).max() < 10


def test_a_lost_run_without_a_checkpoint_says_that_there_is_none(tmp_path):
    trainer, _ = make_trainer(
        tmp_path,
        config={**CONFIG, "checkpoint_every": 1000, "max_rollbacks": 2},
        at_step=spoil_once(2),
        uniform_loss=2.0,
    )
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    assert "No checkpoint had been written before." in str(caught.value)
    assert "is kept" not in str(caught.value)


def test_a_lost_run_names_what_it_leaves(tmp_path):
    config = {**CONFIG, "evaluate_every": 3}
    trainer, _ = make_trainer(tmp_path, config=config, nan_from=9)
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    assert f"The last checkpoint from before is kept: {tmp_path}" in str(caught.value)
    assert "ckpt-8" in str(caught.value)
    assert "The best, of step 6, is in" in str(caught.value)


def test_weights_that_are_lost_are_not_saved_at_the_end_of_a_process(tmp_path, capsys):
    spoil = spoil_once(6)

    def spoil_and_end(step, model):
        spoil(step, model)
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer, _ = make_trainer(tmp_path, at_step=spoil_and_end, uniform_loss=2.0)
    with pytest.raises(Preempted):
        trainer.train()
    assert "resume from step 4" in capsys.readouterr().out
    assert saved_numbers(tmp_path / "checkpoints") == [4]


def test_a_spike_that_comes_right_by_itself_changes_nothing(tmp_path):
    """Two steps with a loss ten times that of a guess are fewer than the patience."""

    def spike(step, model):
        kernel = model.weights[0]
        if step == 5:
            kernel.assign_add(np.full([2, 1], 9.0))
        elif step == 7:
            kernel.assign_add(np.full([2, 1], -9.0))

    trainer, _ = make_trainer(tmp_path, at_step=spike, uniform_loss=2.0)
    assert trainer.train()["rollbacks"] == 0
