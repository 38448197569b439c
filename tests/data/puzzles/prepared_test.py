"""Tests of tfdeq.data.puzzles.prepared."""

import numpy as np
import pytest

from tfdeq.data.puzzles import PUZZLES, get, prepared, puzzle_examples


def made(folder, name="maze", **changes):
    options = {"train": 40, "validation": 5, "test": 10, "seed": 1, **changes}
    return puzzle_examples(name, prepared_dir=str(folder), **options)


@pytest.mark.parametrize("name", sorted(PUZZLES))
def test_splits_have_no_puzzle_in_common(name, tmp_path):
    examples = made(tmp_path, name)
    puzzle = get(name)
    assert [len(split[0]) for split in examples] == [40, 5, 10]
    assert all(puzzle.check(*split).all() for split in examples)
    keys = np.concatenate([puzzle.key(*split) for split in examples])
    assert len(set(keys.tolist())) == 55
    assert len({row.tobytes() for split in examples for row in split[0]}) == 55


def test_the_few_puzzles_there_are_are_told_apart(tmp_path):
    # The search visits 2 × 2 cells in a circle: up to symmetry, only the goal is free.
    examples = made(tmp_path, train=1, validation=1, test=1, size=3)
    keys = np.concatenate([get("maze").key(*split) for split in examples])
    assert len(set(keys.tolist())) == 3
    with pytest.raises(
        ValueError, match=r"too few different puzzles maze.* 4 were requested, 3 were found"
    ):
        made(tmp_path, train=2, validation=1, test=1, size=3)
    sums = made(tmp_path, "prefix_sums", train=10, validation=3, test=3, size=4)
    assert sorted(np.concatenate([split[0] for split in sums]) @ [8, 4, 2, 1]) == list(range(16))


def test_a_set_is_made_once(tmp_path, monkeypatch):
    first = made(tmp_path)
    files = list(tmp_path.rglob("*.*"))
    assert [file.name for file in files if file.is_file()] == ["examples.npz"]

    def fail(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(prepared, "_different", fail)
    assert made(tmp_path).fingerprint() == first.fingerprint()
    for changes in ({"seed": 2}, {"train": 41}, {"size": 11}, {"name": "prefix_sums"}):
        with pytest.raises(AssertionError, match="made again"):
            made(tmp_path, **changes)


def test_the_default_folder_is_that_of_prepared_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "_default_folder", lambda: str(tmp_path))
    examples = puzzle_examples("prefix_sums", train=3, validation=1, test=1)
    assert examples.train[0].shape == (3, 32)
    assert list(tmp_path.glob("puzzles/prefix_sums_*/examples.npz"))


def test_a_damaged_set_is_named(tmp_path):
    made(tmp_path)
    (path,) = tmp_path.rglob("examples.npz")
    whole = path.read_bytes()
    for content in (whole[:100], b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="examples.npz cannot be read.*Delete that file"):
            made(tmp_path)
    np.savez(path, inputs=np.zeros(3), targets=np.zeros(3))
    with pytest.raises(ValueError, match="it has shapes"):
        made(tmp_path)


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="0 or more; received .*'train': -1"):
        made(tmp_path, train=-1)
    with pytest.raises(ValueError, match="Unknown puzzle"):
        made(tmp_path, "chess")
    assert not list(tmp_path.iterdir())
