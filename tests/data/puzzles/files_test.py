"""Tests of tfdeq.data.puzzles.files, on small files of the published layouts."""

import numpy as np
import pytest

from tfdeq.data.puzzles import files, maze, prefix_sums, sudoku

HEADER = "source,question,answer,rating\n"


def lines(inputs, targets, blank="."):
    for board, target in zip(inputs, targets, strict=True):
        question = "".join(map(str, board.ravel())).replace("0", blank)
        yield f"puzzles0_kaggle,{question},{''.join(map(str, target.ravel() + 1))},0\n"


@pytest.mark.parametrize("blank", [".", "0"])
def test_sudoku_extreme(tmp_path, blank):
    inputs, targets = sudoku.make(3, 9, 0)
    path = tmp_path / "test.csv"
    path.write_text(HEADER + "".join(lines(inputs, targets, blank)))
    read = files.sudoku_extreme(str(path))
    np.testing.assert_array_equal(read[0], inputs)
    np.testing.assert_array_equal(read[1], targets)
    assert read[0].dtype == read[1].dtype == np.int32
    np.testing.assert_array_equal(files.sudoku_extreme(str(path), limit=2)[0], inputs[:2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,answer\n", "columns source,question,answer,rating; received 'question,answer'"),
        ("", "received ''"),
        (HEADER, "no puzzles"),
        (HEADER + "a,123,456,0\n", "Line 2 of .* received 'a,123,456,0'"),
        (HEADER + f"a,{'x' * 81},{'1' * 81},0\n", "Line 2"),
        (HEADER + f"a,{'.' * 81},{'0' * 81},0\n", "Line 2"),
        (HEADER + f"{'.' * 81},{'1' * 81}\n", "Line 2"),
    ],
)
def test_other_files_are_no_sudoku_extreme(tmp_path, text, message):
    path = tmp_path / "train.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        files.sudoku_extreme(str(path))


def picture(mazes, paths):
    """The published layout: red, green, blue of 2 × 2 pixels, in a border of 3."""
    colours = np.array([[0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0]], float)
    border = ((0, 0), (3, 3), (3, 3))
    doubled = [
        np.pad(x.repeat(2, axis=1).repeat(2, axis=2), border) for x in (mazes, paths.astype(float))
    ]
    return np.moveaxis(colours[doubled[0]], -1, 1), doubled[1]


def save(folder, inputs, solutions):
    np.save(folder / "inputs.npy", inputs)
    np.save(folder / "solutions.npy", solutions)
    return str(folder)


@pytest.mark.parametrize("size", [3, 9, 13])
def test_easy_to_hard_mazes(tmp_path, size):
    mazes, paths = maze.make(3, size, 0)
    pictures, solutions = picture(mazes, paths)
    assert pictures.shape == (3, 3, 2 * size + 6, 2 * size + 6)
    read = files.easy_to_hard_mazes(save(tmp_path, pictures, solutions))
    np.testing.assert_array_equal(read[0], mazes)
    np.testing.assert_array_equal(read[1], paths)
    assert maze.check(*read).all()


def test_other_pictures_are_no_mazes(tmp_path):
    pictures, solutions = picture(*maze.make(2, 5, 0))
    shifted = np.roll(pictures, 1, axis=2)
    two_goals = pictures.copy()
    two_goals[1, :, 3:5, 3:5] = np.array([1, 0, 0])[:, None, None]
    two_goals[1, :, 7:9, 7:9] = np.array([1, 0, 0])[:, None, None]
    for changed, targets, message in (
        (pictures[:, :1], solutions, r"received \[2, 1, 16, 16\]"),
        (pictures, solutions[:, 1:], r"\[2, 16, 16\]; received \[2, 15, 16\]"),
        (shifted, solutions, r"inputs.npy must have places of 2 × 2 pixels .* column\] = \[0, "),
        (pictures * 255, solutions, "inputs.npy must have places of 2 × 2 pixels"),
        (pictures, solutions * 2, "solutions.npy must have places"),
        (two_goals, solutions, "one red place; received [23] in the maze at index 1"),
        (pictures, solutions[:1], "received 2 and 1"),
        (pictures[:0], solutions[:0], "received 0 and 0"),
    ):
        with pytest.raises(ValueError, match=message):
            files.easy_to_hard_mazes(save(tmp_path, changed, targets))


def test_easy_to_hard_prefix_sums(tmp_path):
    bits, sums = prefix_sums.make(5, 16, 0)
    for inputs in (bits.astype("float32"), bits[:, None] - 0.5, bits.astype(bool)):
        read = files.easy_to_hard_prefix_sums(save(tmp_path, inputs, sums.astype("float32")))
        np.testing.assert_array_equal(read[0], bits)
        np.testing.assert_array_equal(read[1], sums)
        assert read[0].dtype == read[1].dtype == np.int32
    for inputs, message in (
        (bits[:, :8], r"received \[5, 8\] and \[5, 16\]"),
        (bits + 1, r"inputs.npy must hold 0 and 1; received values \[1, 2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            files.easy_to_hard_prefix_sums(save(tmp_path, inputs, sums))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.sudoku_extreme(str(tmp_path / "none.csv"))
    with pytest.raises(FileNotFoundError, match="is no folder"):
        files.easy_to_hard_mazes(str(tmp_path / "none"))
    (tmp_path / "32_data.pth").touch()
    with pytest.raises(FileNotFoundError, match="it holds 32_data.pth"):
        files.easy_to_hard_prefix_sums(str(tmp_path))
