"""Properties of all puzzle tasks in the registry."""

import hashlib

import numpy as np
import pytest
import tensorflow as tf

from tfdeq.data.puzzles import PUZZLES, Puzzle, get

NAMES = sorted(PUZZLES)
# Digests of the first five puzzles with seed 7 at the default size: the same on every machine.
DIGESTS = {
    "maze": "6afad556e7f32781",
    "prefix_sums": "d238ea0d0a95aba5",
    "reachability": "49d5ac44c4851c82",
    "sudoku": "a11a24694193e9c2",
}


def made(name, count=24, seed=3, grade=None):
    return get(name).make(count, get(name).size, seed, grade)


def grades():
    return [(name, grade) for name in NAMES for grade in (None, *get(name).grades)]


@pytest.mark.parametrize("name", NAMES)
def test_puzzles_are_what_the_registry_says(name):
    puzzle = get(name)
    assert puzzle.name == name
    inputs, targets = made(name)
    places = (puzzle.size,) * puzzle.rank
    assert inputs.shape == targets.shape == (24, *places)
    assert inputs.dtype == targets.dtype == np.int32
    assert set(np.unique(inputs)) == set(range(puzzle.tokens))
    assert set(np.unique(targets)) == set(range(puzzle.classes))


@pytest.mark.parametrize(("name", "grade"), grades())
def test_targets_are_right_and_no_other_answer_is(name, grade):
    puzzle = get(name)
    inputs, targets = made(name, 6, grade=grade)
    assert puzzle.check(inputs, targets).all()
    places = np.random.default_rng(0).integers(targets[0].size, size=(8, 6))
    for place in places:
        wrong = targets.copy().reshape(6, -1)
        wrong[np.arange(6), place] = (wrong[np.arange(6), place] + 1) % puzzle.classes
        assert not puzzle.check(inputs, wrong.reshape(targets.shape)).any()
    assert not puzzle.check(inputs, targets - puzzle.classes).any()
    assert not puzzle.check(inputs, targets + puzzle.classes).any()


@pytest.mark.parametrize("name", NAMES)
def test_puzzles_follow_from_the_seed(name):
    inputs, targets = made(name, 5, seed=7)
    digest = hashlib.sha256(inputs.astype("<i4").tobytes() + targets.astype("<i4").tobytes())
    assert digest.hexdigest()[:16] == DIGESTS[name]
    more = made(name, 9, seed=7)
    np.testing.assert_array_equal(more[0][:5], inputs)
    np.testing.assert_array_equal(more[1][:5], targets)
    for other in (8, -7, 2**63 - 1):
        assert not np.array_equal(made(name, 5, seed=other)[0], inputs)


@pytest.mark.parametrize("name", [name for name in NAMES if PUZZLES[name].augment])
def test_each_row_gets_a_symmetry_of_its_own(name):
    puzzle = get(name)
    inputs, targets = made(name, 1)
    inputs, targets = np.repeat(inputs, 40, axis=0), np.repeat(targets, 40, axis=0)
    data = tf.data.Dataset.from_tensor_slices((inputs, targets)).batch(40)
    data = data.map(lambda x, y: puzzle.augment(x, y, tf.constant([3, 4])))
    turned, answers = (part.numpy() for part in next(iter(data)))
    assert turned.dtype == answers.dtype == np.int32
    assert puzzle.check(turned, answers).all()
    different = len({row.tobytes() for row in turned})
    assert different == 8 if name == "maze" else different >= 39
    again = puzzle.augment(tf.constant(inputs), tf.constant(targets), tf.constant([3, 4]))
    np.testing.assert_array_equal(again[0], turned)
    other = puzzle.augment(tf.constant(inputs), tf.constant(targets), tf.constant([3, 5]))
    assert not np.array_equal(other[0], turned)


@pytest.mark.parametrize("name", NAMES)
def test_a_key_is_that_of_a_puzzle_and_its_symmetric_ones(name):
    puzzle = get(name)
    inputs, targets = made(name, 60)
    keys = puzzle.key(inputs, targets)
    assert keys.dtype == np.uint64
    assert len(set(keys.tolist())) == 60
    if puzzle.augment:
        turned, answers = puzzle.augment(inputs, targets, tf.constant([1, 2]))
        np.testing.assert_array_equal(puzzle.key(turned.numpy(), answers.numpy()), keys)


def test_unknown_names_grades_and_sizes_are_refused():
    with pytest.raises(ValueError, match=r"Unknown puzzle 'mazes'\. Known: maze, prefix_sums"):
        get("mazes")
    with pytest.raises(ValueError, match=r"grade of maze must be None.*received 'hard'"):
        made("maze", grade="hard")
    with pytest.raises(ValueError, match=r"one_blank, no_guess, .* or None; received 'hard'"):
        made("sudoku", grade="hard")
    for name, size, message in (
        ("maze", 8, "odd number of 3 or more; received 8"),
        ("maze", 1, "odd number of 3 or more; received 1"),
        ("prefix_sums", 0, "1 or more; received 0"),
        ("sudoku", 16, "must be 9; received 16"),
    ):
        with pytest.raises(ValueError, match=message):
            get(name).make(1, size, 0, None)


def test_a_task_needs_no_symmetries_and_no_grades():
    task = Puzzle("x", 2, 2, 1, 4, make=lambda *_: None, check=lambda *_: None, key=lambda *_: None)
    assert task.augment is None
    assert task.grades == ()
