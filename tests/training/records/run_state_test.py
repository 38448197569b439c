import math
import time

import pytest
import tensorflow as tf

from tfdeq.training.records.run_state import RunState

CONFIG = {
    "checkpoint_every": 4,
    "checkpoint_minutes": 1,
    "train_steps": 10,
    "max_rollbacks": 2,
}


class Told:
    """An agreement of several workers, with the chief's values and the worker's own."""

    alone = False

    def __init__(self, is_chief, says=None):
        self.is_chief, self.found, self.says = is_chief, [], says

    def on(self, value):
        self.found.append(value)
        return value if self.is_chief else self.says


def make(folder, read_from=None, agreement=None, lower_is_better=True):
    value, other = tf.Variable(0.0), tf.Variable(0.0)
    folders = str(folder), str(read_from or folder)
    objects, evaluated = {"value": value, "other": other}, {"value": value}
    state = RunState(*folders, CONFIG, objects, evaluated, agreement, lower_is_better)
    return state, value


def test_due_by_steps_by_time_and_at_the_end(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    state, _ = make(tmp_path)
    assert [step for step in range(1, 11) if state.is_due(step)] == [4, 8, 10]
    assert not state.is_late()
    now[0] = 61.0
    assert state.is_late()
    state.save(5)
    assert not state.is_late()


def test_returns_as_often_as_allowed_and_counts(tmp_path):
    state, value = make(tmp_path)
    assert not state.roll_back()  # there is nothing to return to
    value.assign(1.0)
    state.save(4)
    for expected in (1, 2):
        value.assign(7.0)
        assert state.roll_back()
        assert float(value) == 1.0
        assert int(state.step) == 4
        assert int(state.rollbacks) == expected
    assert not state.roll_back()


def test_the_best_is_kept_by_itself(tmp_path):
    state, value = make(tmp_path)
    assert state.best is None
    assert not state.restore_best()
    for step, score in ((2, 3.0), (3, 1.0), (4, 2.0), (5, float("nan"))):
        value.assign(float(step))
        state.save_if_best(step, score)
    assert state.best == {"step": 3, "score": 1.0}
    value.assign(9.0)
    assert state.restore_best()
    assert float(value) == 3.0
    # The run's own step is different.
    assert int(state.step) == 0


def test_of_equal_scores_the_last_is_the_best(tmp_path):
    state, value = make(tmp_path)
    for step, score in ((2, 1.0), (3, 1.0), (4, 1.5)):
        value.assign(float(step))
        state.save_if_best(step, score)
    assert state.best == {"step": 3, "score": 1.0}
    assert state.restore_best()
    assert float(value) == 3.0
    state.save_if_best(5, float("inf"))
    assert state.best["step"] == 3


def test_a_score_that_is_not_finite_is_no_best(tmp_path):
    state, _ = make(tmp_path)
    state.save_if_best(2, float("inf"))
    assert state.best is None


def test_a_run_that_goes_on_knows_the_best_that_is_there(tmp_path):
    state, value = make(tmp_path)
    value.assign(4.0)
    state.save(4)
    value.assign(5.0)
    state.save_if_best(5, 1.0)
    again, value = make(tmp_path)
    again.restore()
    assert (again.best, float(value)) == ({"step": 5, "score": 1.0}, 4.0)
    again.save_if_best(5, 1.5)
    assert again.best["score"] == 1.0
    assert again.restore_best()
    assert float(value) == 5.0


def test_a_return_does_not_forget_the_best(tmp_path):
    state, value = make(tmp_path)
    state.save(4)
    value.assign(6.0)
    state.save_if_best(6, 1.0)
    assert state.roll_back()
    state.save_if_best(6, 2.0)
    assert state.best == {"step": 6, "score": 1.0}
    assert state.restore_best()
    assert float(value) == 6.0


def test_a_damaged_best_is_looked_for_anew(tmp_path, capsys):
    state, _ = make(tmp_path)
    state.save(4)
    state.save_if_best(4, 1.0)
    (tmp_path / "best" / "ckpt-4.index").write_bytes(b"")
    again, _ = make(tmp_path)
    assert again.restore()
    assert again.best is None
    assert "The search for the best weights starts again" in capsys.readouterr().out
    again.save_if_best(5, 2.0)
    assert make(tmp_path)[0].best is None  # before restoring
    last, _ = make(tmp_path)
    last.restore()
    assert last.best == {"step": 5, "score": 2.0}


def test_earlier_checkpoints_are_preferred_to_suspect_ones(tmp_path):
    state, value = make(tmp_path)
    for step in (4, 8):
        value.assign(float(step))
        state.save(step)
    assert state.roll_back(before=8)
    assert float(value) == 4.0
    assert state.roll_back(before=4)  # better than none
    assert float(value) == 8.0


def test_what_is_there(tmp_path):
    state, _ = make(tmp_path)
    assert state.what_is_there() == "No checkpoint had been written before."
    state.save(4)
    assert state.what_is_there().endswith(f"is kept: {tmp_path / 'ckpt-4'}.")
    state.save_if_best(4, 1.0)
    assert "The best, of step 4, is in" in state.what_is_there()


def test_a_worker_reads_the_chiefs_checkpoints_and_writes_its_own(tmp_path):
    chief, value = make(tmp_path / "chief")
    value.assign(5.0)
    chief.save(4)
    worker, value = make(tmp_path / "own", read_from=tmp_path / "chief")
    assert worker.restore()
    assert float(value) == 5.0
    worker.save(8)
    assert not (tmp_path / "chief" / "ckpt-8.index").exists()
    assert (tmp_path / "own" / "ckpt-8.index").exists()


def test_a_worker_knows_the_chiefs_best(tmp_path):
    chief, value = make(tmp_path / "chief")
    chief.save(4)
    chief.save_if_best(4, 1.0)
    worker, value = make(tmp_path / "own", tmp_path / "chief", Told(False, 4.0))
    worker.restore()
    assert worker.best == {"step": 4, "score": 1.0}
    value.assign(5.0)
    told = Told(False, 4.0)
    worker, value = make(tmp_path / "other", tmp_path / "chief", told)
    # The chief's, even if this worker has its own.
    assert worker.restore_best()
    assert worker.best == {"step": 4, "score": 1.0}
    told.says = 0.5
    worker.save_if_best(5, 0.6)
    assert worker.best == {"step": 5, "score": 0.5}
    assert (tmp_path / "chief" / "best" / "ckpt-4.index").exists()


def test_workers_restore_what_the_chief_could_read(tmp_path):
    state, value = make(tmp_path / "chief")
    for step in (4, 8):
        value.assign(float(step))
        state.save(step)
    chief = Told(True)
    assert make(tmp_path / "chief", agreement=chief)[0].restore()
    assert chief.found == [8.0]
    # A newer one that this worker could read, and the chief could not.
    for says, expected in ((4.0, True), (-1.0, False)):
        worker, value = make(tmp_path / "own", tmp_path / "chief", Told(False, says))
        assert worker.restore() is expected
        assert (float(value), int(worker.step)) == ((4.0, 4) if expected else (0.0, 0))
    worker, _ = make(tmp_path / "own", tmp_path / "chief", Told(False, 12.0))
    with pytest.raises(ValueError, match="ckpt-12 cannot be read"):
        worker.restore()
    worker, _ = make(tmp_path / "own", tmp_path / "chief", Told(False, -2.0))
    with pytest.raises(ValueError, match="The first worker can read none"):
        worker.restore()
    nothing = Told(True)
    assert not make(tmp_path / "none", agreement=nothing)[0].restore()
    assert nothing.found == [-1.0]


def test_workers_keep_the_best_of_the_chiefs_scores(tmp_path):
    # The chief's value: its score, if that is its best.
    for own, says, kept in ((0.5, 0.3, True), (0.3, math.inf, False)):
        worker, _ = make(tmp_path / str(says), agreement=Told(False, says))
        worker.save_if_best(4, own)
        assert (tmp_path / str(says) / "best" / "ckpt-4.index").exists() is kept
        assert worker.best == ({"step": 4, "score": says} if kept else None)
    chief = Told(True)
    state, _ = make(tmp_path / "chief", agreement=chief)
    for score in (0.5, 0.7, math.nan):
        state.save_if_best(4, score)
    assert chief.found == [0.5, math.inf, math.inf]


def test_a_score_that_is_better_when_it_is_higher(tmp_path):
    state, value = make(tmp_path, lower_is_better=False)
    assert state.best is None
    for step, score in ((2, 0.5), (4, 0.9), (6, 0.7)):
        value.assign(step)
        state.save_if_best(step, score)
    assert state.best == {"step": 4, "score": 0.9}
    again, value = make(tmp_path, lower_is_better=False)
    again.restore()
    assert again.best == {"step": 4, "score": 0.9}
    assert again.restore_best()
    assert float(value) == 4.0
