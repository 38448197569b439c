"""Writes docs/results/reasoning.md: ways to learn puzzles at equal time, next to published figures.

python -m benchmarks.results.reasoning --document=docs/results/reasoning.md --runs=runs/reasoning_maze

It reads the results that `benchmarks.training.reasoning` wrote to benchmarks/results, and keeps those of the
given runs of trainers.reasoning there. Missing results are listed as not run, with the command that makes
them.
"""

import os
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from absl import flags

from benchmarks.results import reasoning_recipes
from benchmarks.results.tables import markdown_table
from tfdeq.programs import program
from tfdeq.programs.workdir import read_json

FLAGS = flags.FLAGS

_Rows = Mapping[str, Mapping[str, Any]]  # name -> its results from benchmarks.training.reasoning

_HEAD = """# Reasoning: results

Puzzles that are learned small and tested large, by the recipe of each task ("equilibrium") and by its rivals:
the same cell, data and training time on one core, and a learning rate from the same search on validation
data. How a rival differs from the recipe stands in benchmarks/training/reasoning_rivals.py. Figures are means
over seeds; a seed's test puzzles are the same for all. "Exact" is the share of puzzles whose answer is right
at every place, "settled" the share whose solve met the tolerance, and "right if settled" the exact share
among these. A budget of 1 × is `--max_steps` evaluations; a feed-forward network has none. The minutes of a
recipe's run are its seconds per step times its steps; here other programs were using the two cores too.

`python -m benchmarks.results.reasoning --document=docs/results/reasoning.md` makes this page of the stored
figures.
"""
# task -> (title, flags of its comparison, published figures).
TASKS = {
    "prefix_sums": (
        "Prefix sums: trained on 32 bits",
        "--minutes=2 --seeds=2 --test_puzzles=256 --test_budget=32 --test_sizes=512",
        "Bansal et al., arXiv:2202.05826: recurrent networks with recall, trained on 32 bits with the "
        "progressive loss, are exact on more than 97 % of strings of 512 bits.",
    ),
    "maze": (
        "Mazes: trained on 9 × 9 places",
        "--minutes=45 --seeds=2 --test_puzzles=100 --test_budget=16 --test_sizes=33,59 --block=8",
        "The same paper: trained on 9 × 9, about 97 % of mazes of 59 × 59 are exact, on a GPU. Theirs are "
        "images, ours have a token a place.",
    ),
    "sudoku": (
        "Sudoku",
        "--minutes=45 --seeds=2 --test_puzzles=256 --test_budget=16",
        "On Sudoku-Extreme, another hard set: TRM 87.4 % with 5 M parameters (arXiv:2510.04871), Fixed-Point "
        "Reasoners 85.4 % with 0.26 M (arXiv:2606.18206), Equilibrium Reasoners 99.8 % with restarts "
        "(arXiv:2605.21488), HRM 55.0 % (arXiv:2506.21734). Our grades are by the guesses of a search that "
        "knows naked singles alone; see `tfdeq.data.puzzles.sudoku`.",
    ),
}


# task -> what the tables show.
_READ = {
    "prefix_sums": (
        "All ways to train but the feed-forward network learn 32 bits in two minutes. What differs is "
        "whether the state settles on longer strings: after the recipe, the implicit gradient alone "
        "and the unrolled network, every answer to 512 bits settles and is right. After the other "
        "ways 53 to 89 % of the answers settle; all of these are right. The truncated recursion needs "
        "the fewest applications, of which each is seven of the cell."
    ),
}


def command(task: str) -> str:
    """Returns the command that makes the figures of a task."""
    stored = f"benchmarks/results/reasoning_{task}"
    return (
        f"python -m benchmarks.training.reasoning --task={task} {TASKS[task][1]} "
        f"--workdir=runs/reasoning_{task} --record={stored}_record.json --results={stored}.json"
    )


def rivals_table(rows: _Rows) -> str:
    """Returns a table of the variants at the budget in training and at the best one."""
    cells = []
    for name, row in rows.items():
        tests = row["test"]
        budget = best_budget(tests)
        at_best = [at_budget(test, budget) for test in tests]
        cells.append(
            (
                name,
                f"{row['parameters']:,}" if row.get("parameters") else "",
                f"{row['steps']:,}",
                f"{row['learning_rate']:g}",
                _each([at_budget(test, "1.0")["exact"] for test in tests]),
                _each([test["exact"] for test in at_best]) + f" at {float(budget):g} ×",
                _mean(at_best, "settled"),
                _mean(at_best, "right_if_settled"),
            )
        )
    columns = (
        *("trained by", "parameters", "steps", "rate", "exact at 1 × (each seed)"),
        *("exact at the best budget", "settled", "right if settled"),
    )
    return markdown_table(columns, cells)


def budget_table(rows: _Rows) -> str:
    """Returns a table of each variant's exact share by budget."""
    budgets = list(
        dict.fromkeys(
            budget for row in rows.values() for t in row["test"] for budget in t["by_budget"]
        )
    )
    cells = [
        (
            name,
            *(
                _mean([test["by_budget"].get(b, {}) for test in row["test"]], "exact")
                for b in budgets
            ),
        )
        for name, row in rows.items()
    ]
    return markdown_table(("exact at", *(f"{float(b):g} ×" for b in budgets)), cells)


def part_table(rows: _Rows, part: str) -> str:
    """Returns exact shares, of all and of settled answers, by size or grade; "" if none was tested.

    Args:
        part: "by_size" (at the largest budget) or "by_grade" (at the best budget of each).
    """
    names = list(
        dict.fromkeys(
            n for row in rows.values() for test in row["test"] for n in test.get(part, ())
        )
    )
    if not names:
        return ""
    cells = []
    for name, row in rows.items():
        found = [name]
        for one in names:
            tests = [test[part][one] for test in row["test"] if one in test.get(part, ())]
            if part == "by_grade" and tests:
                budget = best_budget([{"by_budget": test} for test in tests])
                tests = [test[budget] for test in tests]
            figures = (_mean(tests, key) for key in ("exact", "settled", "right_if_settled"))
            found.append(" / ".join(figure or "–" for figure in figures))
        cells.append(found)
    what = "size" if part == "by_size" else "grade"
    return markdown_table((f"exact / settled / right if settled, by {what}", *names), cells)


def best_budget(tests: Iterable[Mapping[str, Any]]) -> str:
    """Returns the budget with the highest mean exact share, the smallest of equals."""
    tests = list(tests)
    means = {
        budget: statistics.mean(at_budget(test, budget)["exact"] for test in tests)
        for budget in tests[0]["by_budget"]
    }
    return max(means, key=lambda budget: (means[budget], -float(budget)))


def at_budget(test: Mapping[str, Any], budget: str) -> Mapping[str, Any]:
    """Returns a test's figures at a budget."""
    return test["by_budget"][budget]


def document(folder: str) -> str:
    """Returns the text of docs/results/reasoning.md.

    Args:
        folder: folder of the results' JSON files.
    """
    parts = [_HEAD]
    for task, (title, _, published) in TASKS.items():
        parts += [f"## {title}\n", "### At equal time\n", f"Made by `{command(task)}`.\n"]
        rows = read_json(os.path.join(folder, f"reasoning_{task}.json"))
        if rows is None:
            parts.append("Not run yet.\n")
        else:
            parts += [rivals_table(rows), budget_table(rows)]
            parts += [
                table for part in ("by_size", "by_grade") if (table := part_table(rows, part))
            ]
            parts += [f"{_READ[task]}\n"] if task in _READ else []
        run = read_json(os.path.join(folder, f"reasoning_{task}_recipe.json"))
        parts += [reasoning_recipes.section(task, run), f"Published: {published}\n"]
    return "\n".join(parts)


def _mean(tests: Iterable[Mapping[str, Any]], name: str) -> str:
    """Returns the mean as a percentage, or "" if no test has it."""
    values = [test[name] for test in tests if name in test]
    return f"{100 * statistics.mean(values):.1f} %" if values else ""


def _each(values: list[float]) -> str:
    each = ", ".join(f"{100 * value:.1f}" for value in values)
    return f"**{100 * statistics.mean(values):.1f} %** ({each})"


def main() -> None:
    for workdir in FLAGS.runs:
        print(f"Kept: {reasoning_recipes.keep(workdir, FLAGS.results)}")
    os.makedirs(os.path.dirname(FLAGS.document) or ".", exist_ok=True)
    with open(FLAGS.document, "w", encoding="utf-8") as file:
        file.write(document(FLAGS.results))
    print(f"Written: {FLAGS.document}")


def define_flags() -> None:
    """Defines the program's flags; modules that import this one may have flags with the same names."""
    flags.DEFINE_string("results", "benchmarks/results", "Folder of the stored figures.")
    flags.DEFINE_list(
        "runs", [], "Finished runs of trainers.reasoning whose figures are kept there."
    )
    flags.DEFINE_string("document", "docs/results/reasoning.md", "Markdown file to write.")


if __name__ == "__main__":
    define_flags()
    program.run(main)
