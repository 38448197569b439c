"""Trains a deep equilibrium model on copy memory: python -m trainers.copy_memory --workdir=DIR.

--sequence_length is the task's T, the number of steps after which ten symbols must be repeated.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from absl import flags

from tfdeq.data.copy_memory import COPIED, VOCABULARY_SIZE, copy_memory_batches
from tfdeq.programs import program
from tfdeq.runs import kind
from tfdeq.runs.measures import CROSS_ENTROPY
from tfdeq.training import command, experiment
from tfdeq.training.evaluation import Evaluator
from tfdeq.training.flags.equilibrium import define_equilibrium_flags
from tfdeq.training.flags.shared import bound, define_run_flags
from tfdeq.training.task import Task
from tfdeq.training.text.evaluation import NATS, sequence_evaluator
from tfdeq.training.text.model_flags import define_model_flags
from tfdeq.training.text.models import make_loss, make_model, radius_of

FLAGS = flags.FLAGS

# Validation and test examples are drawn with seeds that are never used for training.
_VALIDATION, _TEST = 2**62, 2**62 + 1
# The measures of the logits for exports.
_MEASURES = {
    "loss": CROSS_ENTROPY,
    "accuracy": "sparse_categorical_accuracy",
}


def _define_flags() -> list[str]:
    names = [
        *define_run_flags(train_steps=1000, learning_rate=3e-3, optimizer="adam"),
        *define_equilibrium_flags(),
        *define_model_flags(sequence_length=400, width=32, feedforward=64),
    ]
    flags.DEFINE_integer(
        "evaluation_batches",
        2,
        "Batches of fresh examples in each evaluation during training. Default: 2.",
    )
    flags.DEFINE_integer(
        "test_batches",
        8,
        "Batches of other fresh examples in the test after training, of each T. Default: 8.",
    )
    for name in ("evaluation_batches", "test_batches"):
        bound(name, lambda value: value >= 1, "must be at least 1")
    flags.DEFINE_list(
        "test_lengths",
        ["100", "200", "300"],
        "Other T that the trained model is tested on; longer ones than --sequence_length only where "
        "the model reads any length. Default: 100,200,300.",
    )
    bound(
        "test_lengths",
        lambda value: all(one.isdigit() and int(one) for one in value),
        "must be whole numbers of at least 1",
    )
    return [*names, "evaluation_batches", "test_batches", "test_lengths"]


def _batches(
    config: Mapping[str, Any],
    start_step: int = 0,
    shard: int = 0,
    shards: int = 1,
    seed: int | None = None,
    memory_length: int | None = None,
) -> tf.data.Dataset:
    return copy_memory_batches(
        memory_length=memory_length or config["sequence_length"],
        batch_size=config["batch_size"],
        seed=config["seed"] if seed is None else seed,
        start_step=start_step,
        shard=shard,
        shards=shards,
    )


def make_experiment(config: Mapping[str, Any]) -> experiment.Experiment:
    """Returns the experiment of a configuration, with its untrained model."""
    length = config["sequence_length"] + 2 * COPIED
    model = make_model(config, VOCABULARY_SIZE, sequence_length=length)

    batches = functools.partial(_batches, config)

    def evaluator(seed: int, count: int, memory_length: int | None = None) -> Evaluator:
        return sequence_evaluator(
            model,
            batches(seed=seed, memory_length=memory_length).take(count),
            # The mean over all positions, including blanks, as reported in the literature.
            lambda means: {"loss": means[NATS]},
            jit_compile=config["jit_compile"],
        )

    def test() -> dict[str, Any]:
        count = config["test_batches"]
        lengths = [int(other) for other in config["test_lengths"]]
        readable = [other for other in lengths if model.remembers or other + 2 * COPIED <= length]
        if len(readable) < len(lengths):
            left_out = ", ".join(str(other) for other in lengths if other not in readable)
            print(f"Not tested on T = {left_out}: this model reads no longer texts than its own.")
        by_length = {str(T): evaluator(_TEST, count, T).evaluate() for T in readable}
        return {**evaluator(_TEST, count).results(), "by_length": by_length}

    task = Task(
        model=model,
        loss=make_loss(model, config),
        batches=batches,
        evaluate=evaluator(_VALIDATION, config["evaluation_batches"]).evaluate,
        display=lambda row: {"loss": row["loss"]},
        items_per_step=config["batch_size"] * length,
        equilibria=[] if config["depth"] else [model.equilibrium],
        spectral_radius=None if config["depth"] else radius_of(model),
        uniform_loss=math.log(VOCABULARY_SIZE),
    )
    kept = kind.keep(*next(iter(batches(seed=_TEST))))
    return experiment.Experiment(
        task,
        test,
        output_layers=["readout"],
        after=lambda workdir, *_: kind.write(workdir, kept),
        kind=kind.examples(_MEASURES, model, kept, names=["tokens"]),
    )


CONFIGURATION_FLAGS = _define_flags()


def main() -> None:
    command.train(make_experiment, CONFIGURATION_FLAGS)


def run() -> None:
    """Entry point of the console script."""
    program.run(main, resumable=True)


if __name__ == "__main__":
    run()
