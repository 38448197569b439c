import json
import os

import pytest

from trainers import workdir


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


def test_claim_is_repeated_with_the_same_configuration_only(tmp_path):
    folder = str(tmp_path / "run")
    assert not workdir.claim(folder, {"width": 8, "solver": "anderson"})
    assert workdir.claim(folder, {"width": 8, "solver": "anderson"})
    with pytest.raises(ValueError, match=r"another configuration: --width: 8 there, 16 received"):
        workdir.claim(folder, {"width": 16, "solver": "anderson"})
    assert workdir.read_json(os.path.join(folder, "config.json"))["width"] == 8


def test_claim_lets_reporting_differ(tmp_path):
    folder = str(tmp_path / "run")
    workdir.claim(folder, {"width": 8, "log_every": 10})
    assert workdir.claim(folder, {"width": 8, "log_every": 5}, may_differ=("log_every",))


def test_claim_refuses_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(NotADirectoryError, match="is a file"):
        workdir.claim(str(path), {})


def test_curves_survive_a_half_written_line_and_rewind(tmp_path):
    path = str(tmp_path / "curves.jsonl")
    curves = workdir.Curves(path)
    for step in (10, 20, 30):
        curves.append({"step": step, "loss": 1.0 / step})
    with open(path, "a") as file:
        file.write('{"step": 40, "lo')
    again = workdir.Curves(path)
    again.rewind(20)
    again.append({"step": 30, "held_out": 2.0})
    columns = workdir.Curves(path).columns()
    assert columns["step"] == [10, 20, 30]
    assert columns["loss"] == [0.1, 0.05, None]
    assert columns["held_out"] == [None, None, 2.0]
