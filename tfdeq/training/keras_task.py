"""A Keras model with a `DEQLayer` as a task: examples with targets, a loss and measures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdeq import DEQLayer, Solution, SolveScope
from tfdeq.data.examples import Examples, evaluation_examples, training_examples
from tfdeq.runs import kind
from tfdeq.runs.measures import Given, per_example
from tfdeq.solution import combined
from tfdeq.training.evaluation import Budget, Evaluator, Rows
from tfdeq.training.experiment import Experiment
from tfdeq.training.report import pictures
from tfdeq.training.report.residual_trace import ResidualTrace
from tfdeq.training.task import CallSettings, Loss, Score, Task

_EVALUATION_BATCH = 64  # examples at a time


def keras_experiment(
    model: keras.Model,
    config: Mapping[str, Any],
    examples: Examples,
    measures: Mapping[str, Given],
    score: Score,
    item: str = "examples",
    *,
    augment: Callable[..., Any] | None = None,
    prepare: Callable[[Any], Any] | None = None,
    output_layers: Sequence[str] = (),
) -> Experiment:
    """Returns the experiment of a Keras model that is trained on examples with targets.

    A run of it is evaluated at ½, 1, 2 and 4 times its budget, plotted, and can be exported and
    verified: it stores some test examples and its measures in its folder.

    Args:
        model: a functional model, or one of a class that Keras can save, with named inputs. Its
            `DEQLayer` is made with `tfdeq.training.flags.equilibrium.equilibrium_settings(config)`. A
            model without one, a baseline, is evaluated at no other budgets.
        config: values of the flags.
        examples: inputs as the model, or `prepare`, takes them, and targets.
        measures: name -> measure for each example; "loss" is minimised in training. A loss object's own
            reduction is not used, but the mean over the batch.
        score: the measure by which models are compared.
        item: name of the examples in the curves, in the plural.
        augment: random changes to training batches; see `tfdeq.data.training_examples`.
        prepare: (inputs of some examples) -> inputs of the model, in TensorFlow, so that examples in memory
            can be bytes. Default None: no change.
        output_layers: parts of the names of the layers that map to the output. Muon leaves them to Adam.

    Raises:
        ValueError: if "loss" is missing, or score is not one of the measures.
    """
    if "loss" not in measures or score.name not in measures:
        raise ValueError(
            f'measures must have "loss" and the score {score.name!r}; received {sorted(measures)}.'
        )
    prepare = prepare or (lambda inputs: inputs)
    called = _Called(model, measures, prepare)
    budget = None
    if called.layers:
        budget = Budget(config["depth"] or config["max_steps"], explicit=bool(config["depth"]))

    def evaluator(split: Any) -> Evaluator:
        return Evaluator(
            called.rows,
            evaluation_examples(split, _EVALUATION_BATCH),
            _figures(score),
            budget=budget,
            jit_compile=config["jit_compile"],
        )

    validation, test = evaluator(examples.validation), evaluator(examples.test)
    few = tf.nest.map_structure(lambda leaf: leaf[: kind.KEPT], tuple(examples.test))
    kept = kind.keep(prepare(few[0]), few[1])
    trace = ResidualTrace(None if config["depth"] else validation.residual_trace)

    def after(workdir: str, metrics: dict[str, Any], writer: Any) -> None:
        kind.write(workdir, kept)
        pictures.draw_all(workdir, metrics, {}, trace.after(workdir), writer)

    task = Task(
        model=model,
        loss=called.loss,
        batches=example_batches(config, examples, augment),
        evaluate=validation.evaluate,
        display=lambda row: {name: row[name] for name in measures if name in row},
        items_per_step=config["batch_size"],
        equilibria=[] if config["depth"] else called.layers,
        item=item,
        score=score,
        measures=[name for name in measures if name != "loss"],
    )
    entry = kind.examples(measures, model, kept)
    return Experiment(
        task,
        test.results,
        output_layers=output_layers,
        before=trace.before,
        after=after,
        kind=entry,
        fingerprint=examples.fingerprint(),
    )


def example_batches(
    config: Mapping[str, Any], examples: Examples, augment: Callable[..., Any] | None = None
) -> Callable[[int, int, int], tf.data.Dataset]:
    """Returns `Task.batches` for examples, shuffled by the run's seed; augment as in `training_examples`."""

    def batches(start_step: int, shard: int, shards: int) -> tf.data.Dataset:
        return training_examples(
            examples.train,
            batch_size=config["batch_size"],
            seed=config["seed"],
            start_step=start_step,
            shard=shard,
            shards=shards,
            augment=augment,
        )

    return batches


class _Called:
    """A model as the training loop and the evaluator call it."""

    def __init__(
        self,
        model: keras.Model,
        measures: Mapping[str, Given],
        prepare: Callable[[Any], Any],
    ):
        self.layers = [layer for layer in model._flatten_layers() if isinstance(layer, DEQLayer)]
        self._model, self._prepare = model, prepare
        self._measures = {name: per_example(given) for name, given in measures.items()}

    def loss(self, batch: Any, settings: CallSettings, carried: Any) -> Loss:
        """Returns the means of the measures over a batch (inputs, targets)."""
        inputs, targets = batch
        outputs, _ = self._call(inputs, settings)
        means = {
            name: tf.reduce_mean(measure(targets, outputs))
            for name, measure in self._measures.items()
        }
        return Loss(means.pop("loss"), carried, means)

    def rows(self, batch: Any, settings: CallSettings, carried: Any) -> Rows:
        """Returns the measures of each example in a batch (inputs, targets, weights)."""
        inputs, targets, weights = batch
        outputs, solution = self._call(inputs, settings)
        return Rows(
            sums={
                name: weights * measure(targets, outputs)
                for name, measure in self._measures.items()
            },
            weight=weights,
            predictions=tf.cast(weights > 0, tf.int32),
            solution=solution,
            carried=carried,
        )

    def _call(self, inputs: Any, settings: CallSettings) -> tuple[Any, Solution | None]:
        scope = SolveScope(
            max_steps=settings.max_steps,
            explicit_steps=settings.explicit_steps,
            compaction=False,
        )
        with scope:
            outputs = self._model(self._prepare(inputs), training=settings.training)
        return outputs, combined(scope.solutions.values())


def _figures(score: Score) -> Callable[[Mapping[str, float]], dict[str, float]]:
    """Returns the figures, with the score, the main figure, first."""

    def figures(means: Mapping[str, float]) -> dict[str, float]:
        return {score.name: means[score.name], **means}

    return figures
