"""Sets of puzzles that are generated once and stored."""

import hashlib
import json
import os
import zipfile

import numpy as np
from absl import logging

from tfdeq.data.examples import Examples
from tfdeq.data.puzzles.registry import get
from tfdeq.data.token_data import SPLITS
from tfdeq.programs.paths import expanded
from tfdeq.programs.workdir import write_atomically

# Increase it when the same arguments give other puzzles: it is part of the files' names.
_VERSION = 1


def puzzle_examples(
    name: str,
    *,
    train: int,
    validation: int,
    test: int,
    size: int | None = None,
    seed: int = 0,
    grade: str | None = None,
    prepared_dir: str | None = None,
) -> Examples:
    """Generates a set of puzzles, or reads it if it was generated before.

    No puzzle occurs twice, in one split or in two, not even as a symmetric copy of another: all keys
    are different; see `Puzzle.key`. For mazes and graphs, the keys cover all symmetries of `augment`.
    For Sudoku, they are keys of the complete grids, so no two puzzles have symmetric solutions. Other
    kinds of similarity, such as two mazes that differ in one wall, are not checked.

    Args:
        name: a task of `tfdeq.data.puzzles.PUZZLES`.
        train, validation, test: numbers of puzzles.
        size: size of each puzzle; None: the task's default.
        seed: any 64-bit integer.
        grade: grade of all puzzles; None: the task's own mixture.
        prepared_dir: where sets are stored, in a folder named by a digest of the other arguments; None:
            as for prepared texts, the environment variable TFDS_DATA_DIR or ~/tensorflow_datasets.

    Returns:
        Examples whose splits are (inputs, targets), [N, *places] int32.

    Raises:
        ValueError: for an unknown task, size or grade, if there are too few different puzzles of this
            size, or if the stored set is damaged.
        OSError: if the set cannot be written.
    """
    puzzle = get(name)
    size = puzzle.size if size is None else size
    counts = {"train": train, "validation": validation, "test": test}
    if min(counts.values()) < 0:
        raise ValueError(f"Numbers of puzzles must be 0 or more; received {counts}.")
    made_of = {"name": name, **counts, "size": size, "seed": seed % 2**64, "grade": grade}
    text = json.dumps({**made_of, "version": _VERSION}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:20]
    root = _default_folder() if prepared_dir is None else prepared_dir
    path = os.path.join(expanded(root), "puzzles", f"{name}_{digest}", "examples.npz")
    if not os.path.exists(path):
        logging.info("Making %d puzzles in %s.", sum(counts.values()), path)
        inputs, targets = _different(name, sum(counts.values()), size, seed, grade)
        write_atomically(path, lambda new: np.savez_compressed(new, inputs=inputs, targets=targets))
    inputs, targets = _read(path, sum(counts.values()), (size,) * puzzle.rank)
    ends = np.cumsum(list(counts.values()))[:-1]
    splits = zip(np.split(inputs, ends), np.split(targets, ends), strict=True)
    return Examples(**dict(zip(SPLITS, splits, strict=True)))


def _default_folder() -> str:
    import tensorflow_datasets as tfds  # takes seconds

    return tfds.core.constants.DATA_DIR


def _different(
    name: str, count: int, size: int, seed: int, grade: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns puzzles with different keys, in the order in which they are generated."""
    puzzle, rounds = get(name), []
    keys, kept = np.zeros(0, np.uint64), 0
    while kept < count or not rounds:
        # Each round has its own stream, so that no puzzle has to be generated again to continue.
        wanted = count - kept if not rounds else max(count - kept, 256)
        made = puzzle.make(wanted, size, seed % 2**64 + len(rounds) * 0x9E3779B97F4A7C15, grade)
        new = puzzle.key(*made)
        _, first = np.unique(np.concatenate([keys, new]), return_index=True)
        first = np.sort(first[first >= len(keys)])[: count - kept] - len(keys)
        if wanted and not len(first):
            raise ValueError(
                f"There are too few different puzzles {name} of size {size} (symmetric puzzles count "
                f"as one): {count} were requested, {kept} were found. Ask for fewer or for larger "
                "puzzles."
            )
        rounds.append(tuple(part[first] for part in made))
        keys, kept = np.concatenate([keys, new[first]]), kept + len(first)
    inputs, targets = (np.concatenate(parts) for parts in zip(*rounds, strict=True))
    return inputs, targets


def _read(path: str, count: int, places: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            inputs, targets = file["inputs"], file["targets"]
        if not inputs.shape == targets.shape == (count, *places):
            raise ValueError(f"it has shapes {inputs.shape} and {targets.shape}")
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"The prepared puzzles {path} cannot be read: {error}. Delete that file and run again to "
            "generate them again."
        ) from error
    return inputs, targets
