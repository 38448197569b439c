"""The final test: its budgets, and valid and invalid public sets."""

import numpy as np
import pytest

from tfdeq.training.reasoning.final_test import budgets_of, public_set

CONFIG = {"task": "prefix_sums", "depth": 0, "test_budget": 6.0, "test_puzzles": 2}


def test_budgets():
    assert budgets_of(CONFIG) == [0.5, 1.0, 2.0, 4.0]
    assert budgets_of({**CONFIG, "depth": 1}) == [1.0]


def _written(folder, spoil=0):
    bits = np.random.default_rng(0).integers(0, 2, (3, 8))
    sums = np.cumsum(bits, axis=1) % 2
    sums[1, 5] ^= spoil
    np.save(folder / "inputs.npy", bits)
    np.save(folder / "solutions.npy", sums)
    return bits, sums


def test_a_public_set(tmp_path):
    bits, sums = _written(tmp_path)
    assert public_set({**CONFIG, "test_set": ""}) == ()
    ((inputs, targets),) = public_set({**CONFIG, "test_set": str(tmp_path)})
    np.testing.assert_array_equal(inputs, bits[:2])
    np.testing.assert_array_equal(targets, sums[:2])


def test_a_set_with_a_wrong_answer(tmp_path):
    _written(tmp_path, spoil=1)
    with pytest.raises(ValueError, match="1 of 2 are not, first that of the puzzle at index 1"):
        public_set({**CONFIG, "test_set": str(tmp_path)})


def test_a_task_without_a_known_set():
    with pytest.raises(ValueError, match="No public set of --task=reachability is known"):
        public_set({**CONFIG, "task": "reachability", "test_set": "there"})
