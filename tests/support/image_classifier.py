"""Trains an equilibrium that says what a small picture shows: python -m tests.support.image_classifier."""

import keras
import numpy as np
from absl import flags

import tfdeq
from tfdeq.data.examples import Examples
from tfdeq.programs import program
from tfdeq.runs.measures import CROSS_ENTROPY
from tfdeq.training import command
from tfdeq.training.flags.equilibrium import define_equilibrium_flags, equilibrium_settings
from tfdeq.training.flags.shared import define_run_flags
from tfdeq.training.keras_task import keras_experiment
from tfdeq.training.task import Score

NAMES = [*define_run_flags(optimizer="adam"), *define_equilibrium_flags()]
ACCURACY = Score("accuracy", lower_is_better=False)
flags.DEFINE_integer("pictures", 400, "Training pictures. Default: 400.")


def pictures(count, seed):
    """Returns noisy images [N, 8, 8, 1] of horizontal bars, vertical bars or both, and their labels."""
    random = np.random.default_rng(seed)
    kinds, places = random.integers(0, 3, count), random.integers(1, 7, (2, count))
    x = random.normal(scale=0.3, size=(count, 8, 8)).astype("float32")
    x[np.arange(count), places[0]] += (kinds != 1)[:, None]
    x[np.arange(count), :, places[1]] += (kinds != 0)[:, None]
    return x[..., None], kinds.astype("int32")


def make_experiment(config):
    image, z, x = (
        keras.Input((8, 8, size), name=name) for name, size in (("image", 1), ("z", 8), ("x", 8))
    )
    spread = keras.layers.Conv2D(8, 3, padding="same", kernel_initializer="zeros")(z)
    layer = tfdeq.DEQLayer(
        keras.Model([z, x], keras.ops.tanh(spread + x)), **equilibrium_settings(config)
    )
    state = layer(keras.layers.Conv2D(8, 3, padding="same")(image))
    model = keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalMaxPooling2D()(state)))
    data = Examples(pictures(config["pictures"], 0), pictures(100, 1), pictures(200, 2))
    measures = {"loss": CROSS_ENTROPY, "accuracy": "sparse_categorical_accuracy"}
    return keras_experiment(model, config, data, measures, ACCURACY, item="pictures")


if __name__ == "__main__":
    program.run(lambda: command.train(make_experiment, [*NAMES, "pictures"]), resumable=True)
