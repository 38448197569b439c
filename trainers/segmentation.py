"""Says what each place of a picture shows: python -m trainers.segmentation --workdir=DIR.

Trains a multiscale equilibrium. The pictures are made: discs, squares and triangles on textures, see
tfdeq/data/images/shapes.py. The score is the intersection over union.
"""

from collections.abc import Mapping
from typing import Any

import keras
from absl import flags

from tfdeq import DEQLayer
from tfdeq.cells import MultiscaleCell
from tfdeq.data.images import shapes
from tfdeq.data.images.encoded import scaled
from tfdeq.models import DensePredictionHead
from tfdeq.programs import program
from tfdeq.runs import kind
from tfdeq.runs.measures import CROSS_ENTROPY
from tfdeq.training import command
from tfdeq.training.experiment import Experiment
from tfdeq.training.flags.equilibrium import define_equilibrium_flags, equilibrium_settings
from tfdeq.training.flags.shared import at_least, bound, define, define_run_flags
from tfdeq.training.images import recipes
from tfdeq.training.images.overlap import intersection_over_union
from tfdeq.training.keras_task import keras_experiment
from tfdeq.training.task import Score

IOU = Score("iou", lower_is_better=False)
_DATA_SEED = 0  # of all runs, so that they are tested on the same pictures


def _define_flags() -> list[str]:
    run = {**recipes.RUN, "train_steps": 1000, "batch_size": 32}
    names = [*define_run_flags(**run), *define_equilibrium_flags(**recipes.EQUILIBRIUM)]
    definitions = [
        (flags.DEFINE_integer, "image_size", 32, "Rows and columns of the pictures, at least 16."),
        (flags.DEFINE_integer, "train_pictures", 4000, "Number of training pictures."),
        (flags.DEFINE_integer, "validation_pictures", 200, "Pictures for the evaluations during training."),
        (flags.DEFINE_integer, "test_pictures", 500, "Number of pictures in the test after training."),
        (flags.DEFINE_list, "branches", ["16", "32"], "Channels of the state, the highest resolution first."),
        (flags.DEFINE_integer, "expansion", 2, "Factor on the channels inside a residual block."),
        (flags.DEFINE_integer, "groups", 8, "Groups of the group norms; must divide the branches."),
    ]  # fmt: skip
    names += define(definitions, {})
    at_least(16, "image_size")
    at_least(1, "train_pictures", "validation_pictures", "test_pictures", "expansion", "groups")
    bound(
        "branches",
        lambda value: bool(value) and all(one.isdigit() and int(one) for one in value),
        "must be whole numbers of at least 1",
    )
    return names


def make_model(config: Mapping[str, Any]) -> keras.Model:
    """Returns the untrained model: pictures [B, H, W, 3] in [0, 1] to logits [B, H, W, classes]."""
    size, precision = config["image_size"], config["precision"]
    branches = [int(channels) for channels in config["branches"]]
    image = keras.Input((size, size, 3), name="image")
    x = keras.layers.Rescaling(4.0, -2.0, name="standardized")(image)
    for place in range(2):
        x = keras.layers.Conv2D(
            branches[0], 3, padding="same", use_bias=False, dtype=precision, name=f"stem_{place}"
        )(x)
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"stem_{place}_norm")(x)
        x = keras.layers.ReLU(name=f"stem_{place}_relu")(x)
    cell = MultiscaleCell(
        branches,
        config["expansion"],
        config["groups"],
        skip="input",
        recurrent_scale=0.0,
        dtype=precision,
        name="cell",
    )
    z = DEQLayer(cell, **equilibrium_settings(config), name="equilibrium")(x)
    logits = DensePredictionHead(len(shapes.CLASSES), name="head")(z)
    return keras.Model(image, logits, name="segmenter")


def make_experiment(config: Mapping[str, Any]) -> Experiment:
    """Returns the experiment of a configuration, with its untrained model."""
    counts = (config[f"{split}_pictures"] for split in ("train", "validation", "test"))
    data = shapes.load(*counts, config["image_size"], _DATA_SEED)
    measures = {
        "loss": CROSS_ENTROPY,
        IOU.name: intersection_over_union,
        "accuracy": "sparse_categorical_accuracy",
    }
    made = keras_experiment(
        make_model(config),
        config,
        data,
        measures,
        IOU,
        "pictures",
        prepare=scaled,
        output_layers=["head"],
    )
    return made._replace(kind=kind.pictures(made.kind))


CONFIGURATION_FLAGS = _define_flags()


def main() -> None:
    command.train(make_experiment, CONFIGURATION_FLAGS)


def run() -> None:
    """Entry point of the console script."""
    program.run(main, resumable=True)


if __name__ == "__main__":
    run()
