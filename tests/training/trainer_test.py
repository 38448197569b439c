import os
import signal
import time

import numpy as np
import pytest

from tests.support.cases import fast
from tests.support.trainer_cases import CONFIG, make_trainer, weights_of
from tfdeq.programs.preemption import EXIT_CODE, Preempted
from tfdeq.programs.workdir import Curves
from tfdeq.training import trainer as trainer_module
from tfdeq.training.devices import agreement
from tfdeq.training.records.progress import Progress
from tfdeq.training.steps import training_step


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole, whole_model = make_trainer(tmp_path / "whole")
    whole.train()
    seen: list[int] = []
    # The first part ends some rows after a checkpoint, like a killed process.
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


def test_peak_memory_is_that_of_the_largest_process_of_the_run(tmp_path, monkeypatch):
    peaks = iter([3 * 2**30, 2 * 2**30])  # of the process that is interrupted, and of the next one

    def process(**more):
        peak = next(peaks)
        monkeypatch.setattr(trainer_module, "peak_resident_bytes", lambda: peak)
        return make_trainer(tmp_path / "parts", **more)[0]

    with pytest.raises(FloatingPointError):
        process(nan_from=9).train()
    assert process().train()["peak_memory_mib"] == 3 * 1024


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


@pytest.mark.parametrize("jit_compile", fast([False], [False, True]))
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


@pytest.mark.parametrize(("is_chief", "expected"), [(True, [4, 8, 12]), (False, [12])])
def test_of_several_workers_the_chiefs_clock_decides(tmp_path, monkeypatch, is_chief, expected):
    for module in (agreement, training_step):
        monkeypatch.setattr(module, "several_workers", lambda strategy: True)
    monkeypatch.setattr(agreement, "is_chief", lambda strategy: is_chief)
    config = {**CONFIG, "checkpoint_every": 10**6, "checkpoint_minutes": 1}
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def hurry(step, model):
        now[0] += 25.0

    trainer, _ = make_trainer(tmp_path, config=config, at_step=hurry)
    trainer.train()
    found = (tmp_path / "checkpoints").glob("ckpt-*.index")
    # Known before a step, exchanged in it, done after it.
    assert sorted(int(path.stem[5:]) for path in found) == expected


@pytest.mark.parametrize("moment", fast(["last step"], ["last step", "last evaluation"]))
def test_sigterm_at_the_end_is_not_lost(tmp_path, monkeypatch, moment):
    last = CONFIG["train_steps"]

    def end(step, model):
        if moment == "last step" and step == last - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def evaluation(self, step, results):
        if moment == "last evaluation" and step == last:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "evaluation", evaluation)
    trainer, _ = make_trainer(tmp_path, at_step=end)
    with pytest.raises(Preempted) as caught:
        trainer.train()
    assert caught.value.step == last
    assert (tmp_path / "checkpoints" / f"ckpt-{last}.index").exists()
    seen = []
    make_trainer(tmp_path, seen=seen)[0].train()
    assert not seen


def test_sigterm_before_the_first_step_has_nothing_to_save(tmp_path, monkeypatch):
    trainer, _ = make_trainer(tmp_path)
    batches = trainer.batches

    def end(start_step):
        os.kill(os.getpid(), signal.SIGTERM)
        return batches(start_step)

    monkeypatch.setattr(trainer, "batches", end)
    with pytest.raises(Preempted) as caught:
        trainer.train()
    assert caught.value.step == 0
    assert not list((tmp_path / "checkpoints").glob("ckpt-*"))
