"""Writes docs/results/images.md: accuracy, certificates and segmentation, next to published figures.

python -m benchmarks.images.document --runs=runs/mnist_monotone,runs/shapes --document=docs/results/images.md

The name of a run's folder says which of `RUNS` it is. Its figures are kept in
benchmarks/results/images_NAME.json, because a run's folder is not part of the project. Missing runs are
listed as not run, with their command.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from absl import flags

from benchmarks.images.certified_accuracy import FILE
from benchmarks.results.tables import markdown_table
from tfdeq.programs import program
from tfdeq.programs.workdir import read_json, write_json

FLAGS = flags.FLAGS


class Wanted(NamedTuple):
    """A run of the page."""

    title: str
    program: str
    flags: str


_CLASSIFIER, _SEGMENTATION = "trainers.image_classifier", "trainers.segmentation"
RUNS = {
    "mnist_monotone": Wanted(
        "MNIST, monotone convolution", _CLASSIFIER,
        "--dataset=mnist --data_dir=DIR --cell=monotone --stem_stride=2 --max_steps=40 --ema=0.998 "
        "--train_steps=4000",
    ),
    "fashion_multiscale": Wanted(
        "Fashion-MNIST, multiscale", _CLASSIFIER,
        "--dataset=fashion_mnist --data_dir=DIR --stem_stride=2",
    ),
    "fashion_residual_network": Wanted(
        "Fashion-MNIST, residual network of six blocks", _CLASSIFIER,
        "--dataset=fashion_mnist --data_dir=DIR --stem_stride=2 --model=resnet --depth=6",
    ),
    "shapes": Wanted("Shapes on textures, multiscale", _SEGMENTATION, ""),
}  # fmt: skip
_HEAD = """# Pictures: results

Each run is one seed of one command, tested once on all test pictures with the weights that were the best on
validation pictures. "±" is the standard error over test pictures. The residual is relative; a run's minutes
are its seconds per step times its steps, an upper bound: other programs were using the two cores too, and the
run was paused in between.

`python -m benchmarks.images.document --document=docs/results/images.md` makes this page of the stored
figures.
"""
_PUBLISHED = """## Published

| | data | accuracy |
|---|---|---|
| monotone convolution, 84K parameters (Winston, Kolter, arXiv:2006.08591) | MNIST | 99.2 % |
| Jacobian-free backpropagation, 54K (Fung et al., arXiv:2103.12803) | MNIST | 99.4 % |
| MDEQ, 10M (Bai, Koltun, Kolter, arXiv:2006.08656) | CIFAR-10 | 93.8 % |
| MDEQ with the Jacobian penalty, 6 evaluations for 17 (Bai, Koltun, Kolter, arXiv:2106.14342) | CIFAR-10 | 93.1 % for 93.6 % |
"""  # noqa: E501


def command(name: str) -> str:
    """Returns the command of a run."""
    wanted = RUNS[name]
    return " ".join(
        filter(None, [f"python -m {wanted.program}", wanted.flags, f"--workdir=runs/{name}"])
    )


def keep(workdir: str, folder: str) -> str:
    """Writes the figures of a finished run to the folder of results, and returns the file.

    Raises:
        FileNotFoundError: if the run has no figures yet.
        ValueError: if the folder's name is none of `RUNS`.
    """
    name = os.path.basename(os.path.normpath(workdir))
    if name not in RUNS:
        raise ValueError(
            f"A run's folder is named as the page names it: {', '.join(RUNS)}; received {workdir}."
        )
    metrics = read_json(os.path.join(workdir, "metrics.json"))
    if metrics is None:
        raise FileNotFoundError(
            f"{workdir} holds no metrics.json: the run has not finished, or the folder is another one."
        )
    train, config = metrics["train"], metrics["config"]
    path = os.path.join(folder, f"images_{name}.json")
    figures = {
        "parameters": metrics["parameters"],
        "train_steps": config["train_steps"],
        "max_steps": config["max_steps"],
        "minutes": train["seconds_per_step"] * config["train_steps"] / 60,
        "kept_step": train["kept_step"],
        "score": metrics["score"]["name"],
        "test": metrics["test"],
        "certified": read_json(os.path.join(workdir, FILE)),
    }
    write_json(path, figures)
    return path


def document(folder: str) -> str:
    """Returns the page, made from the figures in a folder."""
    found = {name: read_json(os.path.join(folder, f"images_{name}.json")) for name in RUNS}
    runs = {name: run for name, run in found.items() if run is not None}
    parts = [_HEAD, "## Runs\n", _runs_table(runs) if runs else "", _commands(runs)]
    budgets = [table for name, run in runs.items() if (table := _budget_table(name, run))]
    parts += ["## By budget\n", *budgets] if budgets else []
    certified = {name: run["certified"] for name, run in runs.items() if run.get("certified")}
    parts += [_certificates(name, figures) for name, figures in certified.items()]
    return "\n".join(part for part in [*parts, _PUBLISHED] if part)


def _runs_table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, run in runs.items():
        test, solved = run["test"], "residual" in run["test"]
        error = f" ± {100 * test['standard_error']:.2f}" if "standard_error" in test else ""
        rows.append(
            (
                RUNS[name].title,
                f"{run['parameters']:,}",
                f"{run['train_steps']:,}",
                f"{run['minutes']:.0f}",
                f"{run['score'].replace('iou', 'intersection over union')} "
                f"**{100 * test[run['score']]:.2f} %**{error}",
                f"{test['residual']:.1e}" if solved else "",
                f"{test['steps']:.1f}" if solved else "",
            )
        )
    columns = ("run", "parameters", "steps", "minutes", "test", "residual", "evaluations")
    return markdown_table(columns, rows)


def _commands(runs: Mapping[str, Any]) -> str:
    return "".join(
        f"- {RUNS[name].title}: `{command(name)}`{'' if name in runs else '. Not run yet.'}\n"
        for name in RUNS
    )


def _budget_table(name: str, run: Mapping[str, Any]) -> str:
    by_budget = run["test"]["by_budget"]
    if len(by_budget) < 2:  # explicit layers have no budget
        return ""
    score = run["score"]
    rows = [
        (
            f"{float(budget):g} ×",
            f"{100 * row[score]:.2f} %",
            f"{row['residual']:.1e}",
            f"{row['steps']:.1f}",
        )
        for budget, row in by_budget.items()
    ]
    columns = (f"{RUNS[name].title}, 1 × is {run['max_steps']}", score, "residual", "evaluations")
    return markdown_table(columns, rows)


def _certificates(name: str, figures: Mapping[str, Any]) -> str:
    rows = [
        (radius, f"{100 * share:.1f} %", f"{100 * figures['attacked'][radius]:.1f} %")
        for radius, share in figures["certified"].items()
    ]
    return (
        f"## Certificates: {RUNS[name].title}\n\n"
        f"Made by `python -m benchmarks.images.certified_accuracy --workdir=runs/{name} --data_dir=DIR "
        f"--pictures={figures['pictures']} --attack_steps={figures['attack_steps']} "
        f"--restarts={figures['restarts']}`.\n\n"
        f"{figures['pictures']:,} test pictures with values in [0, 1], solved to {figures['tolerance']:g}: "
        f"accuracy {100 * figures['accuracy']:.1f} %, median radius {figures['median_radius']:.3f}. "
        '"Certified" is the share with a right answer that no change within the radius can alter; "under '
        f'attack" the share that projected gradient steps ({figures["attack_steps"]} steps from '
        f"{figures['restarts']} starts) did not alter. Within a picture's own certified radius they altered "
        f"{figures['attacks_inside_the_radius']} answers.\n\n"
        + markdown_table(("radius in l2", "certified", "under attack"), rows)
    )


def keep_all(workdirs: Iterable[str], folder: str) -> None:
    """Keeps the figures of runs; see `keep`."""
    for workdir in workdirs:
        print(f"Kept: {keep(workdir, folder)}")


def main() -> None:
    keep_all(FLAGS.runs, FLAGS.results)
    os.makedirs(os.path.dirname(FLAGS.document) or ".", exist_ok=True)
    with open(FLAGS.document, "w", encoding="utf-8") as file:
        file.write(document(FLAGS.results))
    print(f"Written: {FLAGS.document}")


def define_flags() -> None:
    """Defines the program's flags; modules that import this one may have flags with the same names."""
    flags.DEFINE_list("runs", [], "Folders of finished runs whose figures are to be kept.")
    flags.DEFINE_string("results", "benchmarks/results", "Folder of the stored figures.")
    flags.DEFINE_string("document", "docs/results/images.md", "Markdown file to write.")


if __name__ == "__main__":
    define_flags()
    program.run(main)
