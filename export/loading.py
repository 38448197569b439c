"""`load_model`: an exported version as the Keras model that it was made from."""

import json
import os
import pathlib

import keras
import tensorflow as tf

# Keras finds classes by name among those that were imported.
import tfdeq.baselines
import tfdeq.models  # noqa: F401

# Under assets.extra: how to build the model again. The weights are those of the SavedModel.
NAME = "keras_model.json"


def to_json(model: keras.Model) -> str | None:
    """Returns how to build a model again, or None for a model whose class does not say."""
    try:
        described = keras.saving.serialize_keras_object(model)
        # Compiled losses and optimisers are not exported.
        described.pop("compile_config", None)
        return json.dumps(described, indent=1) + "\n"
    except Exception:  # a user's get_config may raise anything; the model can be served without
        return None


def load_model(path: str | os.PathLike, custom_objects: dict | None = None) -> keras.Model:
    """Builds the Keras model of a version that `export.saved_model.export` wrote, with its weights.

    Args:
        path: a version folder.
        custom_objects: name -> class or function, for what is not registered with Keras.

    Returns:
        The model, not compiled; train it on, and export it as the next version.

    Raises:
        FileNotFoundError: no version there, or one that does not say how its model is built.
        ValueError: a model that is not what the version's weights belong to.

    Example:
        >>> import tempfile
        >>> from export import saved_model
        >>> from tfdeq.models import LanguageModel
        >>> model = LanguageModel(vocabulary_size=7, sequence_length=6, width=8, heads=2)
        >>> model.build((None, 6))
        >>> path = saved_model.export(model, tempfile.mkdtemp())
        >>> load_model(path).vocabulary_size
        7
    """
    path = pathlib.Path(path)
    file = path / "assets.extra" / NAME
    if not file.is_file():
        raise FileNotFoundError(
            f"{str(file)!r} is missing: {str(path)!r} is no version of export.saved_model, or its "
            "model's class has no get_config. Load the model from its .keras file."
        )
    model = keras.saving.deserialize_keras_object(
        json.loads(file.read_text(encoding="utf-8")), custom_objects=custom_objects
    )
    weights = tf.saved_model.load(str(path)).weights
    if len(weights) != len(model.variables) or any(
        tuple(value.shape) != tuple(variable.shape)
        for value, variable in zip(weights, model.variables, strict=True)
    ):
        raise ValueError(
            f"The model in {str(file)!r} has {len(model.variables)} variables, {str(path)!r} "
            f"{len(weights)}, or of other shapes. Use the code of the release that exported it."
        )
    for variable, value in zip(model.variables, weights, strict=True):
        variable.assign(value)
    return model
