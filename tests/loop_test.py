import os
import signal
import time

import numpy as np
import pytest

from tests.trainer_cases import CONFIG, make_trainer, weights_of
from trainers.preemption import EXIT_CODE, Preempted
from trainers.workdir import Curves


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


def test_a_skipped_step_changes_nothing(tmp_path):
    """With the bad batches the run is the one that never saw them, but for the steps that it lost."""
    trainer, model = make_trainer(tmp_path / "bad", nan_from=10)
    columns = trainer.train()
    short, short_model = make_trainer(tmp_path / "short", config={**CONFIG, "train_steps": 10})
    short.train()
    for weight, expected in zip(weights_of(model), weights_of(short_model), strict=True):
        np.testing.assert_array_equal(weight, expected)
    assert columns["all_skipped_steps"] == 2
    assert columns["rollbacks"] == 0


def test_steps_that_go_wrong_in_a_row_return_the_run_to_its_last_checkpoint(tmp_path):
    """Steps 9 to 11 go wrong the first time: back to step 8, with half the learning rate."""
    seen = []
    config = {**CONFIG, "max_rollbacks": 1}
    trainer, model = make_trainer(tmp_path, nan_from=9, nan_once=True, config=config, seen=seen)
    columns = trainer.train()
    # In between, the diagnosis looks at the batch of the last finite report.
    assert seen == [*range(12), 9, *range(8, 12)]
    assert columns["rollbacks"] == 1
    assert columns["all_skipped_steps"] == 3
    assert [rate for rate in columns["learning_rate"] if rate][-1] == pytest.approx(0.05)
    assert all(np.isfinite(weight).all() for weight in weights_of(model))


def test_poisoned_weights_are_replaced_by_the_last_good_ones(tmp_path):
    poisoned = []

    def poison(step, model):
        if step == 9 and not poisoned:
            poisoned.append(step)
            model.weights[0].assign(np.full([2, 1], np.nan))

    trainer, model = make_trainer(tmp_path, config={**CONFIG, "max_rollbacks": 1}, at_step=poison)
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
    poisoned = []

    def poison(step, model):
        if step == 11 and not poisoned:
            poisoned.append(step)
            model.weights[0].assign(np.full([2, 1], np.nan))

    trainer, model = make_trainer(tmp_path, config={**CONFIG, "max_rollbacks": 1}, at_step=poison)
    assert trainer.train()["rollbacks"] == 1
    assert all(np.isfinite(weight).all() for weight in weights_of(model))


def test_a_run_that_keeps_diverging_ends_with_a_diagnosis(tmp_path):
    trainer, _ = make_trainer(tmp_path, nan_from=9, config={**CONFIG, "train_steps": 30})
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    text = str(caught.value)
    assert "in each of the last 3 steps, up to step 12" in text
    assert "The last finite report, at step 9: gradient_norm" in text
    assert "spectral_radius 0.7" in text
    assert "--learning_rate" in text


def test_sigterm_saves_and_asks_to_be_run_again(tmp_path):
    def end(step, model):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    trainer, _ = make_trainer(tmp_path / "parts", at_step=end)
    with pytest.raises(Preempted) as caught:
        trainer.train()
    assert caught.value.code == EXIT_CODE == 75
    assert caught.value.step == 7
    assert signal.getsignal(signal.SIGTERM) is before
    seen = []
    resumed, model = make_trainer(tmp_path / "parts", seen=seen)
    resumed.train()
    assert seen[0] == 7
    whole, whole_model = make_trainer(tmp_path / "whole")
    whole.train()
    for weight, expected in zip(weights_of(model), weights_of(whole_model), strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_checkpoints_by_time(tmp_path, monkeypatch):
    config = {**CONFIG, "checkpoint_every": 10**6, "checkpoint_minutes": 1}
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def hurry(step, model):
        now[0] += 25.0

    trainer, _ = make_trainer(tmp_path, config=config, at_step=hurry)
    trainer.train()
    numbers = sorted(path.stem for path in (tmp_path / "checkpoints").glob("ckpt-*.index"))
    assert numbers == ["ckpt-12", "ckpt-6", "ckpt-9"]  # the last three; every third step


def test_the_best_checkpoint_stays(tmp_path):
    config = {**CONFIG, "evaluate_every": 3}
    trainer, _ = make_trainer(tmp_path, config=config)
    columns = trainer.train()
    assert columns["best"] == {"step": 12, "score": 0.2}
    (found,) = (tmp_path / "checkpoints" / "best").glob("ckpt-*.index")
    assert found.stem == "ckpt-12"


@pytest.mark.parametrize("jit_compile", [False, True])
def test_accumulated_parts_are_one_large_batch(tmp_path, jit_compile):
    results = []
    for count in (1, 2, 4):
        config = {**CONFIG, "accumulation_steps": count, "jit_compile": jit_compile}
        trainer, model = make_trainer(tmp_path / str(count), config=config)
        losses = [loss for loss in trainer.train()["loss"] if loss is not None]
        results.append((weights_of(model), losses))
    for weights, losses in results[1:]:
        for weight, expected in zip(weights, results[0][0], strict=True):
            np.testing.assert_allclose(weight, expected, rtol=1e-5)
        assert losses == pytest.approx(results[0][1], rel=1e-5)
