"""cifar10: small files of the layout of both published versions."""

import pickle

import numpy as np
import pytest

from tfdeq.data.images import load

NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def batch(number):
    random = np.random.default_rng(number)
    return random.integers(0, 256, (4, 3072), np.uint8), random.integers(0, 10, 4)


def write(folder, kind):
    folder.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        x, y = batch(number)
        if kind == "binary":
            content = np.concatenate([y[:, None].astype(np.uint8), x], axis=1).tobytes()
            (folder / f"{name}.bin").write_bytes(content)
        else:
            content = {b"data": x, b"labels": y.tolist(), b"batch_label": b"of six"}
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize(("kind", "inner"), [("binary", ""), ("python", "cifar-10-batches-py")])
def test_both_versions(kind, inner, tmp_path):
    write(tmp_path / "cifar" / inner, kind)
    data = load("cifar10", data_dir=str(tmp_path / "cifar"), validation=5)
    assert data.classes[3] == "cat"
    train, validation, test = data.examples
    assert (len(train[0]), len(validation[0])) == (15, 5)
    x, y = batch(5)
    np.testing.assert_array_equal(test[1], y)
    # The red, then the green, then the blue values of all places, row by row.
    np.testing.assert_array_equal(test[0][2, 1, 7], x[2, [39, 1024 + 39, 2048 + 39]])
    assert test[0].shape == (4, 32, 32, 3)
    assert test[0].dtype == np.uint8


def test_damaged_files_are_named(tmp_path):
    write(tmp_path / "b", "binary")
    (tmp_path / "b" / "data_batch_3.bin").write_bytes(b"x" * 3074)
    with pytest.raises(ValueError, match=r"data_batch_3.bin.*3,074 bytes, is not a multiple"):
        load("cifar10", data_dir=str(tmp_path / "b"))
    write(tmp_path / "p", "python")
    (tmp_path / "p" / "data_batch_2").write_bytes(b"")
    with pytest.raises(ValueError, match="data_batch_2' is damaged"):
        load("cifar10", data_dir=str(tmp_path / "p"))
    (tmp_path / "p" / "data_batch_2").unlink()
    with pytest.raises(FileNotFoundError, match="No data_batch_2"):
        load("cifar10", data_dir=str(tmp_path / "p"))


class Harmful:
    def __reduce__(self):
        return print, ("run",)


def test_a_pickle_runs_no_code(tmp_path, capsys):
    write(tmp_path / "p", "python")
    (tmp_path / "p" / "test_batch").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(ValueError, match=r"test_batch.*asks for builtins.print"):
        load("cifar10", data_dir=str(tmp_path / "p"))
    assert "run" not in capsys.readouterr().out
