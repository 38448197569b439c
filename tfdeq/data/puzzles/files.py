"""Public sets of puzzles, read from the user's files.

Every function returns (inputs, targets), int32, with the tokens of the task in the registry, in the order of
the file. Nothing is downloaded.
"""

import csv
import os

import numpy as np

from tfdeq.data.puzzles import maze
from tfdeq.programs.paths import expanded

_COLUMNS = ["source", "question", "answer", "rating"]


def sudoku_extreme(path: str, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Reads train.csv or test.csv of Sudoku-Extreme.

    Args:
        path: a CSV file with the columns source, question, answer and rating. A question is 81 digits, with
            "." or 0 for a blank; an answer is 81 digits of 1 … 9.
        limit: number of puzzles to read; None: all.

    Returns:
        (puzzles, solutions), both [N, 9, 9] int32, as from `tfdeq.data.puzzles.sudoku.make`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another layout; the message quotes the line.

    Source: Wang et al., "Hierarchical reasoning model", arXiv:2506.21734.
    """
    boards: list[str] = []
    with open(expanded(path), encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if header != _COLUMNS:
            raise ValueError(
                f"{path} must begin with the columns {','.join(_COLUMNS)}; received {','.join(header)!r}."
            )
        for row in reader:
            if limit is not None and len(boards) >= 2 * limit:
                break
            boards += _sudoku_row(path, reader.line_num, row)
    if not boards:
        raise ValueError(f"{path} has no puzzles after its header.")
    digits = np.frombuffer("".join(boards).encode(), np.uint8).reshape(-1, 2, 9, 9).astype(np.int32)
    digits -= ord("0")
    return digits[:, 0], digits[:, 1] - 1


def _sudoku_row(path: str, line: int, row: list[str]) -> tuple[str, str]:
    if len(row) == len(_COLUMNS):
        question, answer = row[1].replace(".", "0"), row[2]
        good = len(question) == len(answer) == 81 and set(question) <= set("0123456789")
        if good and set(answer) <= set("123456789"):
            return question, answer
    raise ValueError(
        f"Line {line} of {path} must have a source, a question of 81 digits or dots, an answer of 81 digits "
        f"1 … 9, and a rating; received {','.join(row)!r}."
    )


def easy_to_hard_mazes(folder: str, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Reads a set of the published mazes, such as maze_data_test_9.

    Args:
        folder: with inputs.npy, pictures [N, 3, H, H] of 0 and 1, and solutions.npy, [N, H, H]. A place
            is 2 × 2 pixels, and the border is a wall of 3 pixels: H = 2 n + 6. The start is green, the
            goal red, and open places are white.
        limit: number of puzzles to read; None: all.

    Returns:
        (mazes, paths), both [N, n, n] int32, as from `tfdeq.data.puzzles.maze.make`.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: for other shapes or colours; the message quotes what was received.

    Source: Schwarzschild et al., arXiv:2106.04537 and arXiv:2108.06011.
    """
    pictures, solutions = _arrays(folder, limit)
    shape = pictures.shape
    if pictures.ndim != 4 or shape[1] != 3 or shape[2] != shape[3] or shape[2] % 2 or shape[2] < 12:
        raise ValueError(
            f"{folder}/inputs.npy must be pictures [N, 3, H, H] with an even H of 12 or more; "
            f"received {list(shape)}."
        )
    if solutions.shape != (shape[0], *shape[2:]):
        raise ValueError(
            f"{folder}/solutions.npy must be [N, H, H] = {[shape[0], *shape[2:]]}; "
            f"received {list(solutions.shape)}."
        )
    pixels = np.moveaxis(pictures, 1, -1) @ np.array([4, 2, 1])
    tokens = np.select(
        [pixels == 0, pixels == 7, pixels == 2, pixels == 4],
        [maze.WALL, maze.OPEN, maze.START, maze.GOAL],
        -1,
    ).astype(np.int32)
    _check_pixels(f"{folder}/inputs.npy", tokens, maze.GOAL)
    _check_pixels(f"{folder}/solutions.npy", solutions, 1)
    inputs = tokens[:, 3:-3:2, 3:-3:2]
    for token, colour in ((maze.START, "green"), (maze.GOAL, "red")):
        counts = (inputs == token).sum(axis=(1, 2))
        if (counts != 1).any():
            at = (counts != 1).argmax()
            raise ValueError(
                f"Each maze of {folder}/inputs.npy must have one {colour} place; received {counts[at]} in "
                f"the maze at index {at}."
            )
    return inputs, solutions[:, 3:-3:2, 3:-3:2].astype(np.int32)


def _check_pixels(name: str, array: np.ndarray, highest: int) -> None:
    places = array[:, 3:-3:2, 3:-3:2]
    doubled = np.pad(places.repeat(2, axis=1).repeat(2, axis=2), ((0, 0), (3, 3), (3, 3)))
    wrong = (doubled != array) | ~np.isin(array, range(highest + 1))
    if wrong.any():
        at = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"{name} must have places of 2 × 2 pixels of a known colour in a black border of 3; received "
            f"another picture, first at [N, row, column] = {at}."
        )


def easy_to_hard_prefix_sums(
    folder: str, limit: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a set of the published prefix sums.

    The set is published as PyTorch tensors, LENGTH_data.pth and LENGTH_targets.pth. Save them as arrays
    first: `numpy.save("inputs.npy", torch.load("32_data.pth").numpy())`, and the targets as
    solutions.npy.

    Args:
        folder: with inputs.npy and solutions.npy, [N, L] or [N, 1, L] of any dtype. Bits are 0 and 1,
            or -0.5 and 0.5 as network inputs; sums are 0 and 1.
        limit: number of puzzles to read; None: all.

    Returns:
        (bits, sums), both [N, L] int32, as from `tfdeq.data.puzzles.prefix_sums.make`.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: for other shapes or values; the message quotes what was received.

    Source: Schwarzschild et al., arXiv:2106.04537 and arXiv:2108.06011.
    """
    arrays = [
        array[:, 0] if array.ndim == 3 and array.shape[1] == 1 else array
        for array in _arrays(folder, limit)
    ]
    if arrays[0].ndim != 2 or arrays[0].shape != arrays[1].shape:
        shapes = " and ".join(str(list(array.shape)) for array in arrays)
        raise ValueError(
            f"inputs.npy and solutions.npy in {folder} must be both [N, L] or [N, 1, L]; received {shapes}."
        )
    if not np.isin(arrays[0], (0, 1)).all() and np.isin(arrays[0], (-0.5, 0.5)).all():
        arrays[0] = arrays[0] + 0.5
    for name, array in zip(("inputs.npy", "solutions.npy"), arrays, strict=True):
        if not np.isin(array, (0, 1)).all():
            raise ValueError(
                f"{folder}/{name} must hold 0 and 1; received values {np.unique(array)[:5].tolist()}."
            )
    return arrays[0].astype(np.int32), arrays[1].astype(np.int32)


def _arrays(folder: str, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    place = expanded(folder)
    if not place.is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder; name the one that holds inputs.npy and solutions.npy."
        )
    loaded = []
    for name in ("inputs.npy", "solutions.npy"):
        if not (place / name).exists():
            names = ", ".join(sorted(os.listdir(place))[:8]) or "nothing"
            raise FileNotFoundError(
                f"{folder} must hold inputs.npy and solutions.npy; it holds {names}."
            )
        loaded.append(np.load(place / name, allow_pickle=False))
    if len(loaded[0]) != len(loaded[1]) or not len(loaded[0]):
        raise ValueError(
            f"inputs.npy and solutions.npy in {folder} must have as many puzzles, and one at least; received "
            f"{len(loaded[0])} and {len(loaded[1])}."
        )
    return loaded[0][:limit], loaded[1][:limit]
