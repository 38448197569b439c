import time

import tensorflow as tf

from trainers.run_state import RunState

CONFIG = {
    "checkpoint_every": 4,
    "checkpoint_minutes": 1,
    "train_steps": 10,
    "max_rollbacks": 2,
}


def make(folder, read_from=None):
    value = tf.Variable(0.0)
    state = RunState(str(folder), str(read_from or folder), CONFIG, {"value": value})
    return state, value


def test_due_by_steps_by_time_and_at_the_end(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    state, _ = make(tmp_path)
    assert [step for step in range(1, 11) if state.is_due(step)] == [4, 8, 10]
    now[0] = 61.0
    assert state.is_due(5)
    state.save(5)
    assert not state.is_due(6)


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
    for step, score in ((2, 3.0), (3, 1.0), (4, 2.0)):
        value.assign(float(step))
        state.save_if_best(step, score)
    assert float(state.best) == 1.0
    again, value = make(tmp_path / "best")
    assert again.restore()
    assert (float(value), int(again.step)) == (3.0, 3)


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
