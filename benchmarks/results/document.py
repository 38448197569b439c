"""Writes docs/results.md: the project's figures next to the published ones.

python -m benchmarks.results.document --document=docs/results.md

It reads the results that suite, training_memory and compare of `benchmarks.training` wrote to
benchmarks/results. Missing results are listed as not run, with the command that makes them.
"""

import os
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from absl import flags

from benchmarks.results.results_pictures import draw_curves, draw_memory, draw_sizes
from benchmarks.results.tables import comparison_table, figure_of, markdown_table, memory_table
from benchmarks.training.recipes import recipe_rows
from tfdeq.programs import program
from tfdeq.programs.workdir import read_json

FLAGS = flags.FLAGS

# (model, parameters, test figure, memory in training if published). Bai, Kolter, Koltun,
# arXiv:1909.01377, tables 1 to 3; Zaremba et al., arXiv:1409.2329; Geng, Kolter, arXiv:2310.18605.
PUBLISHED = {
    "copy_memory": [
        ("DEQ-Transformer (2019)", "14K", "3.5e-6", ""),
        ("TCN (2018)", "16K", "2.7e-5", ""),
        ("LSTM (2018)", "16K", "0.050", ""),
        ("GRU (2018)", "16K", "0.049", ""),
    ],
    "ptb_words": [
        ("DEQ-TrellisNet (2019)", "24M", "57.1", "1.2 GB"),
        ("60-layer TrellisNet (2019)", "24M", "57.0", "8.5 GB"),
        ("small LSTM (Zaremba et al. 2014)", "4.7M", "114.5", ""),
    ],
    "wikitext103": [
        ("DEQ-Transformer (2019)", "172M", "24.2", "2.7 GB"),
        ("Transformer-XL (2019)", "165M", "24.3", "8.5 GB"),
        ("DEQ-TrellisNet (2019)", "180M", "29.0", "3.3 GB"),
        ("70-layer TrellisNet (2019)", "180M", "29.2", "24.7 GB"),
        ("DEQ of TorchDEQ (2023)", "98M", "21.85", ""),
    ],
}
# The place of the results, and the command that trains the runs.
SUITE_COMMANDS = {
    name: f"python -m benchmarks.training.suite --suite={name} {flags_}--workdir=runs/{name} "
    f"--results=benchmarks/results/{name}.json"
    for name, flags_ in (
        ("copy_memory", ""),
        ("ptb_words", "--seeds=1 --overrides=data_dir=DIR "),
    )
}
MEMORY_COMMAND = (
    "python -m benchmarks.training.training_memory --flagfile=trainers/presets/ptb_words.flags "
    "--workdir=runs/training_memory --results=benchmarks/results/training_memory.json"
)
ADAPTIVE_COMMAND = (
    "python -m benchmarks.training.adaptive_softmax "
    "--results=benchmarks/results/adaptive_softmax.json"
)
RECIPES_COMMAND = (
    "python -m benchmarks.training.compare --rivals=recipes --seeds=1 --sequence_length=64 "
    "--train_steps=500 --workdir=runs/recipes --results=benchmarks/results/recipes.json"
)
LOST = 0.1  # with a residual above this, a state does not count as an equilibrium
NOT_RUN = [
    ("Penn Treebank words at the paper's size, 24M", "ptb_words_paper"),
    ("Penn Treebank characters", "ptb_characters"),
    ("WikiText-2", "wikitext2"),
    ("WikiText-103, 172M DEQ-Transformer", "wikitext103_transformer"),
    ("WikiText-103, 180M DEQ-TrellisNet", "wikitext103_trellisnet"),
]


def suite_table(runs: Mapping[str, list[dict[str, Any]]], published: Iterable[tuple]) -> str:
    """Returns a Markdown table of the runs, the project's own first."""
    name, _ = figure_of(next(iter(runs.values()))[0]["test"])
    columns = (
        *("model", "parameters", f"test {name}: mean (each seed)", "residual, steps"),
        *("largest in training", "training steps", "s/step", "minutes", "peak memory"),
    )
    cells: list[tuple] = []
    for model, rows in runs.items():
        values = [figure_of(row["test"])[1] for row in rows]
        seeds = ", ".join(f"{value:.4g}" for value in values)
        solved = largest = ""
        if not rows[0]["config"]["depth"]:
            residual = statistics.mean(row["test"]["residual"] for row in rows)
            solved = f"{residual:.1e}, {statistics.mean(r['test']['steps'] for r in rows):.1f}"
            largest = f"{max(map(_largest_residual, rows)):.1e}"
        seconds = statistics.mean(row["figures"]["seconds_per_step"] for row in rows)
        steps = rows[0]["config"]["train_steps"]
        peak = statistics.median(row["figures"]["peak_memory_mib"] for row in rows)
        quality = f"**{statistics.mean(values):.4g}** ({seeds})"
        time = f"{steps:,}", f"{seconds:.2f}", f"{steps * seconds / 60:.0f}"
        size = f"{rows[0]['parameters']:,}"
        cells.append((model, size, quality, solved, largest, *time, f"{peak:.0f} MiB"))
    for model, parameters, value, memory in published:
        cells.append((f"*published:* {model}", parameters, value, *[""] * 5, memory))
    return markdown_table(columns, cells)


def _largest_residual(row: Mapping[str, Any]) -> float:
    """Returns the largest mean residual in a stored row of the training curves."""
    known = row["figures"].get("largest_residual")
    return max(value for _, value in row["curves"]["residual"]) if known is None else known


def budget_table(runs: Mapping[str, list[dict[str, Any]]]) -> str:
    """Returns quality and residual at solver budgets other than that in training."""
    cells = []
    for model, rows in runs.items():
        if rows[0]["config"]["depth"]:
            continue
        for budget in rows[0]["test"]["by_budget"]:
            found = [row["test"]["by_budget"][budget] for row in rows]
            quality = statistics.mean(figure_of(each)[1] for each in found)
            residual = statistics.mean(each["residual"] for each in found)
            steps = statistics.mean(each["steps"] for each in found)
            numbers = f"{quality:.4g}", f"{residual:.1e}", f"{steps:.1f}"
            cells.append((model, f"{budget} ×", *numbers))
    return markdown_table(("model", "budget", "test", "residual", "steps"), cells)


def length_table(runs: Mapping[str, list[dict[str, Any]]]) -> str:
    """Returns the losses for lengths other than that in training, or nothing if none was tested."""
    cells = []
    for model, rows in runs.items():
        known = [row for row in rows if row["test"].get("by_length")]
        for length in known[0]["test"]["by_length"] if known else ():
            loss = statistics.mean(row["test"]["by_length"][length]["loss"] for row in known)
            trained_on = known[0]["config"]["sequence_length"]
            cells.append((model, trained_on, length, f"{loss:.3g}"))
    columns = ("model", "trained on T", "tested on T", "test loss")
    return markdown_table(columns, cells) if cells else ""


def adaptive_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns time and memory of a training step of the softmaxes as a Markdown table."""
    cells = [
        (
            *(f"{row['vocabulary_size']:,}", row["softmax"], row["mode"]),
            *(f"{1e3 * row['median_seconds']:.0f}", f"{row['ratio']:.2f}"),
            f"{row['peak_bytes'] / 2**20:.0f}" if "peak_bytes" in row else "",
        )
        for row in rows
    ]
    columns = ("types", "softmax", "compiled", "ms a step", "× the whole", "peak MiB")
    return markdown_table(columns, cells)


def document(folder: str, path: str) -> str:
    """Returns the text of docs/results.md, and writes its pictures next to it.

    Args:
        folder: folder of the results' JSON files. path: path of the document.
    """
    beside = os.path.dirname(path) or "."
    parts = [_HEAD]
    for suite, title in TITLES.items():
        parts += [title, f"Made by `{SUITE_COMMANDS[suite]}`.\n"]
        found = read_json(os.path.join(folder, f"{suite}.json"))
        parts += _suite_parts(suite, found["runs"], beside) if found else [_MISSING]
    parts += [_MEMORY, f"Made by `{MEMORY_COMMAND}`.\n"]
    memory = read_json(os.path.join(folder, "training_memory.json"))
    if memory:
        draw_memory(memory["rows"], os.path.join(beside, "results_memory.png"))
        parts.append(memory_table(memory["rows"]))
        parts.append(
            "![Memory and seconds of a training step against depth.](results_memory.png)\n"
        )
    else:
        parts.append(_MISSING)
    parts += [_ADAPTIVE, f"Made by `{ADAPTIVE_COMMAND}`.\n"]
    adaptive = read_json(os.path.join(folder, "adaptive_softmax.json"))
    parts.append(adaptive_table(adaptive["table"]) if adaptive else _MISSING)
    parts += [_RECIPES, markdown_table(("name", "source", "flags"), recipe_rows())]
    parts.append(f"At equal time, made by `{RECIPES_COMMAND}`:\n")
    recipes = read_json(os.path.join(folder, "recipes.json"))
    parts += [comparison_table(recipes), recipes_verdict(recipes)] if recipes else [_MISSING]
    parts += [_NOT_RUN, _not_run_table(), _PUBLISHED_ALONE]
    rows = [(model, *rest) for model, *rest in PUBLISHED["wikitext103"]]
    parts.append(markdown_table(("published", "parameters", "test perplexity", "memory"), rows))
    return "\n".join(parts)


def recipes_verdict(recipes: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns which recipes reached the lowest bits, and which have no equilibrium at the end."""
    kept = [name for name, row in recipes.items() if row["residual"] <= LOST]
    kept.sort(key=lambda name: recipes[name]["mean_bits"])
    said = ", ".join(f"{name} ({recipes[name]['mean_bits']:.3f})" for name in kept)
    text = f"From the lowest bits to the highest: {said}."
    lost = [name for name in recipes if name not in kept]
    if lost:
        text += f" Without an equilibrium at the end, a residual above {LOST:g}: {', '.join(lost)}."
    return f"{text}\n"


def _suite_parts(suite: str, runs: Mapping[str, list[dict[str, Any]]], beside: str) -> list[str]:
    """Returns the document's parts about a trained suite; its pictures are written to the folder `beside`."""
    curves, sizes = f"results_{suite}.png", f"results_{suite}_sizes.png"
    draw_curves(runs, os.path.join(beside, curves))
    parts = [
        suite_table(runs, PUBLISHED[suite]),
        f"![Curves of the runs; one line a seed.]({curves})\n",
    ]
    draw_sizes(runs, PUBLISHED[suite], os.path.join(beside, sizes))
    parts.append(f"![Test figures against numbers of parameters.]({sizes})\n")
    parts.append("At other budgets of the solver than that of the training's end:\n")
    parts.append(budget_table(runs))
    lengths = length_table(runs)
    return [*parts, "On other lengths than the trained one:\n", lengths] if lengths else parts


def _not_run_table() -> str:
    program_ = "python -m trainers.language_model --flagfile=trainers/presets"
    commands = [
        (what, f"`{program_}/{preset}.flags --data_dir=DIR --workdir=DIR`")
        for what, preset in NOT_RUN
    ]
    return markdown_table(("what", "command"), commands)


_MISSING = "Not run yet.\n"
_HEAD = """# Results

What the models of the papers do here, beside the published figures. All of it was trained with the
commands that stand there, on two cores of a server CPU without a GPU; seconds of a step, and minutes, are
those of the training steps alone, on a machine that two runs and other work shared, and compare nothing.
A model with fewer figures than others has fewer seeds that are finished. "Residual, steps" are those of
the solves on test data; "largest in training" is the highest mean residual of any row of the curves.

An equilibrium is the slower one wherever a model of its size needs few layers: a step solves forward and
backward, so that in these tables it takes longer than one of any LSTM, GRU or TCN. It is the faster one
against many applications of its own cell; see "Training memory against depth".

`python -m benchmarks.results.document --document=docs/results.md` makes this page of the stored figures.
"""
_COPY_MEMORY = """## Copy memory, T = 400

Ten symbols are to be repeated after 400 steps; the loss is the mean over all 420 positions, in nats.
Guessing the ten gives 10 ln 8 / (T + 20): 0.0495, and 0.173, 0.095, 0.065 at T = 100, 200, 300. A model
trained at one T learns that distance: at others those that copy do worse than guessing. Longer ones the
equilibrium cannot read at all: its attention has a bias for each of 420 distances.
"""
_PTB_WORDS = """## Penn Treebank words

All test text, in eight rows with the memory carried on; every word counts once. The equilibrium is
solved by Anderson acceleration, each row to a relative residual of 2e-3: its budget of 16 evaluations is
room for the slowest row, and a larger one changes nothing. The runs have the preset's settings and half of
its steps, and each had one core. Seconds are wall time, and other programs used the cores too, most of all
beside the two equilibria; by the fastest tenth of their steps, the four runs take 47, 22, 40 and 39 minutes.
So the twelve applications and the LSTM had five sixths of the time of the equilibrium of 2,500 steps. The
equilibrium of fewer steps has as many as the twelve applications of its cell, and the same settings, data
and parameters. The LSTM (two layers of 256) has `--dropout=0.1` and the optimiser that was chosen for the
equilibrium, not for it. Peak memory is that of the whole process: compiler, evaluation and pictures
included, with what the allocator keeps; a step's own is in the next section.
"""
TITLES = {"copy_memory": _COPY_MEMORY, "ptb_words": _PTB_WORDS}
_MEMORY = """## Training memory against depth

A training step of the preset `ptb_words`: the peak of resident memory beyond what is resident before
it, where weights and the optimiser's state already are. The explicit networks are applications of the
same cell. The equilibrium's solve makes all 16 evaluations that it may; in training 4 to 7 on average.
"""
_ADAPTIVE = """## Adaptive softmax

Loss and gradients of 512 targets that are drawn as words are (p ∝ 1 / rank), 128 features wide: one matrix
for all types, or clusters from 1/16 and 1/4 of them on, each a quarter as wide as the one before.
"""
_RECIPES = """## Ways to train an equilibrium

The same model and data, on the bytes of Python's library. What the flags do not name is as in the default.
"""
_NOT_RUN = """## Not run here

Each of these starts, and says how large it is, with `--dry_run`, also without the data. The sizes are
those of the papers; the layers differ in places (see the notes in the presets), so that the widths
were chosen to give the published number of parameters.
"""
_PUBLISHED_ALONE = "What is published on WikiText-103:\n"


def main() -> None:
    folder = os.path.dirname(FLAGS.document)
    os.makedirs(folder or ".", exist_ok=True)
    text = document(FLAGS.results, FLAGS.document)
    with open(FLAGS.document, "w", encoding="utf-8") as file:
        file.write(text)
    print(f"Written: {FLAGS.document}")


def define_flags() -> None:
    """Defines the program's flags; modules that import this one may have flags with the same names."""
    flags.DEFINE_string("results", "benchmarks/results", "Folder of the stored figures.")
    flags.DEFINE_string("document", "docs/results.md", "Markdown file to write.")


if __name__ == "__main__":
    define_flags()
    program.run(main)
