"""Writes docs/results.md: our figures beside the published ones.

python -m benchmarks.results --document=docs/results.md

It reads benchmarks/results/{copy_memory,ptb_words,training_memory,recipes}.json, which `benchmarks.suite`,
`benchmarks.training_memory` and `benchmarks.compare` wrote. What is missing there is named as not run,
with the command that would.
"""

import os
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib
from absl import flags

from benchmarks.tables import comparison_table, memory_table
from trainers import program
from trainers.workdir import read_json

matplotlib.use("Agg")
from matplotlib import pyplot

FLAGS = flags.FLAGS

# Bai, Kolter, Koltun, arXiv:1909.01377, tables 1 to 3, and Zaremba et al., arXiv:1409.2329.
PUBLISHED = {
    "copy_memory": [
        ("DEQ-Transformer (2019)", "14K", "3.5e-6"),
        ("TCN (2018)", "16K", "2.7e-5"),
        ("LSTM (2018)", "16K", "0.050"),
        ("GRU (2018)", "16K", "0.049"),
    ],
    "ptb_words": [
        ("DEQ-TrellisNet (2019)", "24M", "57.1"),
        ("60-layer TrellisNet (2019)", "24M", "57.0"),
        ("small LSTM (Zaremba et al. 2014)", "4.7M", "114.5"),
    ],
}
# Where to look for what was trained, and the command that trains it.
SUITE_COMMANDS = {
    "copy_memory": "python -m benchmarks.suite --suite=copy_memory --workdir=runs/copy_memory "
    "--results=benchmarks/results/copy_memory.json",
    "ptb_words": "python -m benchmarks.suite --suite=ptb_words --parallel=1 --overrides=data_dir=DIR "
    "--workdir=runs/ptb_words --results=benchmarks/results/ptb_words.json",
}
MEMORY_COMMAND = (
    "python -m benchmarks.training_memory --flagfile=trainers/presets/ptb_words.flags --loss_chunk=256 "
    "--workdir=runs/training_memory --results=benchmarks/results/training_memory.json"
)
RECIPES_COMMAND = (
    "python -m benchmarks.compare --rivals=recipes --workdir=runs/recipes "
    "--results=benchmarks/results/recipes.json"
)
NOT_RUN = [
    ("Penn Treebank words at the paper's size, 24M", "ptb_words_paper"),
    ("Penn Treebank characters", "ptb_characters"),
    ("WikiText-2", "wikitext2"),
    ("WikiText-103, 172M DEQ-Transformer", "wikitext103_transformer"),
    ("WikiText-103, 180M DEQ-TrellisNet", "wikitext103_trellisnet"),
]


def figure_of(test: Mapping[str, Any]) -> tuple[str, float]:
    """Returns the name and the value of what a run is judged by."""
    for name in ("perplexity", "loss", "bits_per_byte"):
        if name in test:
            return name.replace("_", " "), test[name]
    raise ValueError(f"No figure of quality among {', '.join(test)}.")


def suite_table(runs: Mapping[str, list[dict[str, Any]]], published: Iterable[tuple]) -> str:
    """Returns a Markdown table of the runs, ours first."""
    name, _ = figure_of(next(iter(runs.values()))[0]["test"])
    lines = [
        f"| model | parameters | test {name}: mean (each seed) | residual, steps | training steps | "
        "minutes | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, rows in runs.items():
        values = [figure_of(row["test"])[1] for row in rows]
        seeds = ", ".join(f"{value:.3g}" for value in values)
        solved = ""
        if not rows[0]["config"]["depth"]:
            residual = statistics.mean(row["test"]["residual"] for row in rows)
            solved = f"{residual:.1e}, {statistics.mean(r['test']['steps'] for r in rows):.1f}"
        minutes = [
            row["figures"]["seconds_per_step"] * row["config"]["train_steps"] / 60 for row in rows
        ]
        peak = statistics.median(row["figures"]["peak_memory_mib"] for row in rows)
        lines.append(
            f"| {model} | {rows[0]['parameters']:,} | **{statistics.mean(values):.3g}** ({seeds}) | "
            f"{solved} | {rows[0]['config']['train_steps']:,} | {statistics.mean(minutes):.0f} | "
            f"{peak:.0f} |"
        )
    for model, parameters, value in published:
        lines.append(f"| *published:* {model} | {parameters} | {value} | | | | |")
    return "\n".join(lines) + "\n"


def budget_table(runs: Mapping[str, list[dict[str, Any]]]) -> str:
    """Returns what quality and residual are at other budgets of the solver than the trained one."""
    lines = ["| model | budget | test | residual | steps |", "|---|---|---|---|---|"]
    for model, rows in runs.items():
        if rows[0]["config"]["depth"]:
            continue
        for budget in rows[0]["test"]["by_budget"]:
            found = [row["test"]["by_budget"][budget] for row in rows]
            quality = statistics.mean(figure_of(each)[1] for each in found)
            residual = statistics.mean(each["residual"] for each in found)
            steps = statistics.mean(each["steps"] for each in found)
            lines.append(f"| {model} | {budget} × | {quality:.4g} | {residual:.1e} | {steps:.1f} |")
    return "\n".join(lines) + "\n"


def length_table(runs: Mapping[str, list[dict[str, Any]]]) -> str:
    """Returns the losses on other lengths than the trained one, or nothing if none was tested."""
    lines = ["| model | trained on T | tested on T | test loss |", "|---|---|---|---|"]
    for model, rows in runs.items():
        known = [row for row in rows if row["test"].get("by_length")]
        for length in known[0]["test"]["by_length"] if known else ():
            loss = statistics.mean(row["test"]["by_length"][length]["loss"] for row in known)
            lines.append(
                f"| {model} | {known[0]['config']['sequence_length']} | {length} | {loss:.3g} |"
            )
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def draw_curves(runs: Mapping[str, list[dict[str, Any]]], path: str) -> None:
    """Draws held-out quality, and residual and steps of the equilibria, along training."""
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), dpi=110, layout="constrained")
    for index, (model, rows) in enumerate(runs.items()):
        color = f"C{index}"
        for number, row in enumerate(rows):
            curves = row["curves"]
            label = model if not number else None
            quality = next(
                f"held_out_{n}" for n in ("perplexity", "loss", "bits_per_byte")
                 if f"held_out_{n}" in curves
            )  # fmt: skip
            axes[0].plot(*zip(*curves[quality], strict=True), color=color, label=label)
            if row["config"]["depth"]:
                continue
            for axis, name in ((axes[1], "residual"), (axes[2], "steps")):
                held_out = curves.get(f"held_out_{name}", [])
                if held_out:
                    axis.plot(*zip(*held_out, strict=True), color=color, label=label)
    axes[0].set(xlabel="training steps", ylabel=quality.replace("_", " "), yscale="log")
    axes[1].set(xlabel="training steps", ylabel="held-out residual at the budget", yscale="log")
    axes[2].set(xlabel="training steps", ylabel="evaluations of the cell")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        if axis.has_data():
            axis.legend(frameon=False, fontsize=8)
    figure.savefig(path)
    pyplot.close(figure)


def document(folder: str, path: str) -> str:
    """Returns the text of docs/results.md, and writes its pictures beside it.

    Args:
        folder: where the results' JSON files are. path: of the document.
    """
    parts = [_HEAD]
    titles = {"copy_memory": _COPY_MEMORY, "ptb_words": _PTB_WORDS}
    for suite, title in titles.items():
        parts.append(title)
        found = read_json(os.path.join(folder, f"{suite}.json"))
        parts.append(f"Made by `{SUITE_COMMANDS[suite]}`.\n")
        if found is None:
            parts.append("Not run yet.\n")
            continue
        runs = found["runs"]
        parts.append(suite_table(runs, PUBLISHED[suite]))
        picture = f"results_{suite}.png"
        draw_curves(runs, os.path.join(os.path.dirname(path) or ".", picture))
        parts.append(f"![Curves of the runs; one line a seed.]({picture})\n")
        parts.append("At other budgets of the solver than that of the training's end:\n")
        parts.append(budget_table(runs))
        lengths = length_table(runs)
        if lengths:
            parts += ["On other lengths than the trained one:\n", lengths]
    memory = read_json(os.path.join(folder, "training_memory.json"))
    text = memory_table(memory["rows"]) if memory else "Not run yet.\n"
    parts += [_MEMORY, f"Made by `{MEMORY_COMMAND}`.\n", text]
    recipes = read_json(os.path.join(folder, "recipes.json"))
    text = comparison_table(recipes) if recipes else "Not run yet.\n"
    parts += [_RECIPES, f"Made by `{RECIPES_COMMAND}`.\n", text]
    parts.append(_NOT_RUN)
    parts.append(
        "\n".join(
            ["| what | command |", "|---|---|"]
            + [
                f"| {what} | `python -m trainers.language_model "
                f"--flagfile=trainers/presets/{preset}.flags --data_dir=DIR --workdir=DIR` |"
                for what, preset in NOT_RUN
            ]
        )
        + "\n"
    )
    return "\n".join(parts)


_HEAD = """# Results

What the models of the papers do here, beside the published figures. All of it was trained with the
commands that stand there, on two cores of a server CPU without a GPU; minutes are those of the
training steps alone, on a machine that two runs and other work shared, and compare nothing. A model
with fewer figures than others has fewer seeds that are finished. `python -m benchmarks.results
--document=docs/results.md` makes this page of the stored figures.
"""
_COPY_MEMORY = """## Copy memory, T = 400

Ten symbols are to be repeated after 400 steps; the loss is the mean over all 420 positions, in nats.
Guessing the ten gives 10 ln 8 / (T + 20): 0.0495, and 0.173, 0.095, 0.065 at T = 100, 200, 300. A model
trained at one T learns that distance: at others those that copy do worse than guessing.
"""
_PTB_WORDS = """## Penn Treebank words

All held-out text, in eight rows with the memory carried on; every word counts once.
"""
_MEMORY = """## Training memory against depth

A training step of the preset `ptb_words`, its losses in chunks of positions: the peak of resident
memory beyond what is resident before it, where weights and the optimiser's state already are. The
explicit networks are applications of the same cell.
"""
_RECIPES = """## Ways to train an equilibrium

The same model and data, on the bytes of Python's library.
"""
_NOT_RUN = """## Not run here

Each of these starts, and says how large it is, with `--dry_run`, also without the data. The sizes are
those of the papers; the layers differ in places (see the notes in the presets), so that the widths
were chosen to give the published number of parameters.
"""


def main() -> None:
    folder = os.path.dirname(FLAGS.document)
    os.makedirs(folder or ".", exist_ok=True)
    text = document(FLAGS.results, FLAGS.document)
    with open(FLAGS.document, "w", encoding="utf-8") as file:
        file.write(text)
    print(f"Written: {FLAGS.document}")


def define_flags() -> None:
    """Defines the program's flags; modules that import it may have flags of the same names."""
    flags.DEFINE_string("results", "benchmarks/results", "Folder of the stored figures.")
    flags.DEFINE_string("document", "docs/results.md", "Markdown file to write.")


if __name__ == "__main__":
    define_flags()
    program.run(main)
