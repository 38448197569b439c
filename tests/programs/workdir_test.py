import json
import os

import pytest

from tfdeq.programs import workdir


def test_write_atomically_leaves_the_old_file_when_the_writer_fails(tmp_path):
    path = tmp_path / "value.json"
    workdir.write_json(str(path), {"a": 1})

    def fail(name):
        with open(name, "w") as file:
            file.write("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        workdir.write_atomically(str(path), fail)
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["value.json"]


def test_a_folder_has_one_writer_who_removes_what_a_killed_one_left(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".partial-1-model.keras").write_bytes(b"half")
    with workdir.locked(str(folder)):
        assert not (folder / ".partial-1-model.keras").exists()
        # The lock is the open file's, so that this process cannot hold it twice either.
        with (
            pytest.raises(BlockingIOError, match="Another process is training in --workdir="),
            workdir.locked(str(folder)),
        ):
            pass
    with workdir.locked(str(folder)):
        pass


def test_what_json_lacks_becomes_null(tmp_path):
    path = tmp_path / "value.json"
    workdir.write_json(str(path), {"a": [float("nan"), 1.0], "b": float("inf")})
    assert workdir.read_json(path) == {"a": [None, 1.0], "b": None}


def test_curves_survive_a_half_written_line_and_rewind(tmp_path):
    path = str(tmp_path / "curves.jsonl")
    curves = workdir.Curves(path)
    for step in (10, 20, 30):
        curves.append({"step": step, "loss": 1.0 / step})
    with open(path, "a") as file:
        file.write('{"step": 40, "lo')
    again = workdir.Curves(path)
    again.rewind(20)
    again.append({"step": 30, "validation": 2.0})
    columns = workdir.Curves(path).columns()
    assert columns["step"] == [10, 20, 30]
    assert columns["loss"] == [0.1, 0.05, None]
    assert columns["validation"] == [None, None, 2.0]


def test_rows_of_older_runs_are_read(tmp_path):
    """Older runs have held_out instead of validation."""
    path = tmp_path / "curves.jsonl"
    path.write_text('{"step": 4, "held_out_loss": 2.0}\n')
    assert workdir.Curves(str(path)).columns() == {"step": [4], "validation_loss": [2.0]}
