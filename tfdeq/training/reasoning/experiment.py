"""A run of a model that learns to solve puzzles: its data, model, loss and tests."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeq import spectral_radius
from tfdeq.data.examples import Split
from tfdeq.data.puzzles import Puzzle, get, puzzle_examples
from tfdeq.models import Reasoner
from tfdeq.runs import kind
from tfdeq.runs.measures import CROSS_ENTROPY
from tfdeq.training.experiment import Experiment
from tfdeq.training.keras_task import example_batches
from tfdeq.training.reasoning import settling
from tfdeq.training.reasoning.evaluation import puzzle_evaluator
from tfdeq.training.reasoning.final_test import final_test, public_set
from tfdeq.training.reasoning.loss import PuzzleLoss
from tfdeq.training.reasoning.models import make_model
from tfdeq.training.reasoning.segments import Segments
from tfdeq.training.report import pictures
from tfdeq.training.report.residual_trace import ResidualTrace
from tfdeq.training.schedule import largest_budget
from tfdeq.training.task import Score, Task

EXACT = Score("exact", "share of puzzles solved", lower_is_better=False)
# The measures of the logits for exports.
_MEASURES = {"loss": CROSS_ENTROPY, "places": "sparse_categorical_accuracy"}
_EXAMPLES = 4  # number of examples whose spectral radius is computed
_DRAWN_FROM = 16  # number of test puzzles


def make_experiment(config: Mapping[str, Any], prepared_dir: str | None = None) -> Experiment:
    """Returns the experiment of a configuration, with its untrained model.

    Args:
        prepared_dir: where sets of puzzles are stored; see `puzzle_examples`.
    """
    puzzle = get(config["task"])
    examples = puzzle_examples(
        puzzle.name,
        train=config["train_puzzles"],
        validation=config["validation_puzzles"],
        test=config["test_puzzles"],
        size=config["size"] or None,
        grade=config["grade"] or None,
        prepared_dir=prepared_dir,
    )
    public = public_set(config)
    model = make_model(config, puzzle)
    validation = puzzle_evaluator(model, examples.validation, config, [1.0])
    trace = ResidualTrace(None if config["depth"] else validation.residual_trace)
    kept = kind.keep(*examples.test)

    def after(workdir: str, metrics: dict[str, Any], writer: Any) -> None:
        kind.write(workdir, kept)
        pictures.draw_all(workdir, metrics, {}, trace.after(workdir), writer)
        if not config["depth"]:
            _draw_settling(model, config, puzzle, examples.test, workdir)

    segments = None
    if config["segments"]:
        segments = Segments(model, config["segments"], config["halting"])
    task = Task(
        model=model,
        loss=_loss(model, config, segments),
        carried=None if segments is None else segments.initial,
        batches=example_batches(config, examples, puzzle.augment),
        evaluate=validation.evaluate,
        display=lambda row: {name: row[name] for name in ("loss", "exact") if name in row},
        items_per_step=config["batch_size"],
        equilibria=[] if config["depth"] else [model.equilibrium],
        spectral_radius=None if config["depth"] else _radius_of(model),
        uniform_loss=float(np.log(puzzle.classes)),
        item="puzzles",
        score=EXACT,
        measures=PuzzleLoss.MEASURES,
    )
    return Experiment(
        task,
        lambda: final_test(model, config, examples.test, public),
        output_layers=["readout"],
        before=trace.before,
        after=after,
        kind=kind.reasoner(_MEASURES, model, kept),
        fingerprint=examples.fingerprint(),
    )


def _loss(model: Reasoner, config: Mapping[str, Any], segments: Segments | None) -> PuzzleLoss:
    return PuzzleLoss(
        model,
        config["settling_penalty"],
        config["progressive_weight"],
        largest_budget(config),
        segments,
    )


def _draw_settling(
    model: Reasoner, config: Mapping[str, Any], puzzle: Puzzle, split: Split, workdir: str
) -> None:
    """Draws how an answer settles, for the one of a few test puzzles that takes the most evaluations."""
    most = int(config["max_steps"] * config["test_budget"])
    inputs = np.asarray(split[0][:_DRAWN_FROM])
    _, solution = model(inputs, max_steps=most, return_solution=True)
    chosen = inputs[int(np.argmax(solution.steps))]
    found = settling.record(model, chosen, most, config["tolerance"])
    settling.draw(puzzle, chosen, found, workdir)


def _radius_of(model: Reasoner) -> Callable[[Any], tf.Tensor]:
    """Returns (batch) -> [b], the spectral radius of ∂f/∂z at the equilibria of a batch's first puzzles."""

    def radius(batch: Any) -> tf.Tensor:
        inputs = batch[0][:_EXAMPLES]
        x, mask = model.embed(inputs)
        z = model.equilibrium(x, mask=mask, training=False)
        # The noise is always the same, so an inspection draws no random numbers.
        return spectral_radius(lambda z: model.applied(z, inputs), z, seed=(0, 0))

    return radius
