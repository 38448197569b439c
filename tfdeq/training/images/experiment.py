"""A run that learns what pictures show: its data, model, measures and drawings."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfdeq.data.examples import Examples
from tfdeq.data.images import Augmentation, ImageData, load, splits
from tfdeq.data.images.encoded import scaled
from tfdeq.data.images.registry import takers
from tfdeq.runs import kind
from tfdeq.runs.measures import CROSS_ENTROPY
from tfdeq.training.experiment import Experiment
from tfdeq.training.images import drawings
from tfdeq.training.images.models import make_model
from tfdeq.training.keras_task import keras_experiment
from tfdeq.training.task import Score

ACCURACY = Score("accuracy", lower_is_better=False)
_MEASURES = {"loss": CROSS_ENTROPY, "accuracy": "sparse_categorical_accuracy"}


def load_data(config: Mapping[str, Any], prepared_dir: str | None = None) -> ImageData:
    """Returns the pictures of a configuration; errors as `tfdeq.data.images.load`."""
    name = config["dataset"]
    options = {
        option: config[flag]
        for option, flag in (("validation", "validation_pictures"), ("image_size", "image_size"))
        if name in takers(option)
    }
    return load(name, data_dir=config["data_dir"], prepared_dir=prepared_dir, **options)


def make_experiment(config: Mapping[str, Any], data: ImageData) -> Experiment:
    """Returns the experiment of a configuration on pictures, with its untrained model."""
    examples = Examples(
        splits.part(data.examples.train, config["train_pictures"]),
        data.examples.validation,
        splits.part(data.examples.test, config["test_pictures"]),
    )
    pictures = examples.train[0]
    model = make_model(config, pictures.shape[1:], len(data.classes), *_statistics(pictures))
    made = keras_experiment(
        model,
        config,
        examples,
        _MEASURES,
        ACCURACY,
        "pictures",
        augment=Augmentation(config["shift"], config["mirror"]),
        prepare=scaled,
        output_layers=["logits", "head"],
    )

    def after(workdir: str, metrics: dict[str, Any], writer: Any) -> None:
        made.after(workdir, metrics, writer)
        found = drawings.answers(model, examples.test, scaled, config)
        drawings.draw_all(workdir, examples.test, found, data.classes)

    return made._replace(after=after, kind=kind.pictures(made.kind))


def _statistics(pictures: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of all values, in [0, 1]."""
    counts = np.bincount(pictures.ravel(), minlength=256)
    values = np.arange(256) / 255
    mean = float(counts @ values / counts.sum())
    variance = float(counts @ (values - mean) ** 2 / counts.sum())
    return mean, max(variance, 1e-6) ** 0.5
