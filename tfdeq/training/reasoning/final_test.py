"""The test of a trained model: puzzles as in training, other sizes and grades, and a public set."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from tfdeq.data.examples import Split
from tfdeq.data.puzzles import get
from tfdeq.models import Reasoner
from tfdeq.training.evaluation import Evaluator
from tfdeq.training.reasoning.evaluation import puzzle_evaluator

# Seed of puzzles of other sizes and grades, different from training seeds.
_SEED = 2**62


def budgets_of(config: Mapping[str, Any]) -> list[float]:
    """Returns the multiples of the usual budget in a test: ½, 1, 2, … --test_budget."""
    if config["depth"]:
        return [1.0]
    budgets = [0.5, 1.0]
    while budgets[-1] * 2 <= config["test_budget"]:
        budgets.append(budgets[-1] * 2)
    return budgets


def public_set(config: Mapping[str, Any]) -> tuple[Split, ...]:
    """Returns the first puzzles of --test_set and their answers, or () without one.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: for a task without a known set, another layout, or an answer that breaks the task's
            rules.
    """
    path = config["test_set"]
    if not path:
        return ()
    puzzle = get(config["task"])
    if puzzle.read is None:
        raise ValueError(
            f"No public set of --task={puzzle.name} is known; received --test_set={path}. Leave it out."
        )
    inputs, targets = puzzle.read(path, config["test_puzzles"])
    wrong = ~puzzle.check(inputs, targets)
    if wrong.any():
        raise ValueError(
            f"The answers of {path} must be right by the rules of {puzzle.name}; {wrong.sum()} of "
            f"{len(wrong)} are not, first that of the puzzle at index {wrong.argmax()}."
        )
    return ((inputs, targets),)


def final_test(
    model: Reasoner, config: Mapping[str, Any], split: Split, public: Sequence[Split] = ()
) -> dict[str, Any]:
    """Returns metrics["test"]: figures for puzzles as in training, at all budgets.

    It also has by_grade and by_set at all budgets, and by_size and by_starts at the largest budget.
    by_starts has figures by number of starts for each grade, or for the puzzles as in training ("all")
    if the task has no grades.

    Args:
        split: (inputs, targets) as in training. public: the set from `public_set`.
    """
    budgets, puzzle = budgets_of(config), get(config["task"])

    def evaluator(split: Split, budgets: Sequence[float], starts: int = 1) -> Evaluator:
        return puzzle_evaluator(model, split, config, budgets, starts)

    def made(size: int, grade: str | None) -> Split:
        return puzzle.make(config["test_puzzles"], size, _SEED, grade)

    size = config["size"] or puzzle.size
    grades = {grade: made(size, grade) for grade in puzzle.grades}
    found = {
        "by_grade": {grade: evaluator(each, budgets).by_budget() for grade, each in grades.items()},
        "by_size": {
            other: evaluator(made(int(other), None), budgets[-1:]).evaluate(budgets[-1])
            for other in config["test_sizes"]
        },
        "by_starts": {
            grade: {
                starts: evaluator(each, budgets[-1:], int(starts)).evaluate(budgets[-1])
                for starts in config["test_starts"]
            }
            for grade, each in (grades or {"all": split}).items()
            if config["test_starts"]
        },
        "by_set": {
            os.path.basename(os.path.normpath(config["test_set"])): evaluator(
                each, budgets
            ).by_budget()
            for each in public
        },
    }
    return {
        **evaluator(split, budgets).results(),
        **{part: figures for part, figures in found.items() if figures},
    }
