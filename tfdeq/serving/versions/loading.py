"""`load_model`: restores the Keras model of an exported version."""

import json
import os
import pathlib
from typing import NamedTuple

import keras
import tensorflow as tf

# Keras finds classes by name only if they are imported.
import tfdeq.baselines
import tfdeq.models  # noqa: F401
from tfdeq.programs.paths import expanded
from tfdeq.serving.versions import keras_state, manifest

# Under assets.extra: the description from which the model is built. The weights are in the
# SavedModel.
NAME = "keras_model.json"
WITHOUT = (
    "export with keras_model=False: the version is served in the same way, but "
    "tfdeq.serving.load_model cannot load its model"
)


class Description(NamedTuple):
    """The data, besides the weights, that restore a model."""

    text: str  # description of the model, as JSON
    state: keras_state.State


def to_json(model: keras.Model) -> str | None:
    """Returns a model's description as JSON, or None if its class does not provide one."""
    try:
        described = keras.saving.serialize_keras_object(model)
        # Compiled losses and optimisers are not exported.
        described.pop("compile_config", None)
        return json.dumps(described, indent=1) + "\n"
    except Exception:  # a user's get_config may raise anything; serving does not need it
        return None


def describe(model: keras.Model) -> Description | None:
    """Returns the data that restore a model, or None as for `to_json`.

    Raises:
        ValueError: for a layer that cannot save its state.
    """
    text = to_json(model)
    if text is None:
        return None
    try:
        state = keras_state.collect(model)
        for place, value in keras_state.flat(state.variables):
            try:
                keras_state.to_numpy(value)
            except Exception as error:
                raise ValueError(f"{place}: {error}") from error
    except Exception as error:  # a layer's own save_own_variables or save_assets may raise anything
        raise ValueError(
            f"The state of the model {model.name!r} cannot be saved by Keras's methods: {error}. "
            f"Correct the layer's save_own_variables or save_assets, or {WITHOUT}."
        ) from error
    return Description(text, state)


def build(text: str, custom_objects: dict | None = None) -> keras.Model:
    """Builds a model from the result of `to_json`."""
    return keras.saving.deserialize_keras_object(json.loads(text), custom_objects=custom_objects)


def write(model: keras.Model, described: Description, extra: pathlib.Path) -> None:
    """Writes a description into a version's folder of additional files."""
    (extra / NAME).write_text(described.text, encoding="utf-8")
    keras_state.write(model, described.state, extra / keras_state.FOLDER)


def load_model(path: str | os.PathLike, custom_objects: dict | None = None) -> keras.Model:
    """Builds the Keras model of a version that `tfdeq.serving.export` wrote, with its state.

    Layers load what they saved by Keras's own methods (`save_own_variables`, `save_assets`), so a
    vocabulary, quantised weights or statistics are restored as from a .keras file.

    Args:
        path: a version folder; `~` is the home folder.
        custom_objects: name -> class or function, for those not registered with Keras.

    Returns:
        The model, not compiled. You can train it further and export it as the next version.

    Raises:
        FileNotFoundError: if there is no version, one of an older release, or one without a description
            of its model.
        tfdeq.serving.versions.manifest.ChangedVersionError: if files differ from those exported.
        ValueError: if the version's state does not fit the model.

    Example:
        >>> import tempfile
        >>> from tfdeq.serving.versions import saved_model
        >>> x = keras.Input((2,), name="x")
        >>> layer = tfdeq.DEQLayer(tfdeq.cells.DenseCell(3), "fixed_point_iteration")
        >>> path = saved_model.export(keras.Model(x, layer(x)), tempfile.mkdtemp())
        >>> load_model(path).output_shape
        (None, 3)
    """
    path = expanded(path)
    manifest.require_whole(path)
    file, state = (path / manifest.FOLDER / name for name in (NAME, keras_state.FOLDER))
    if not file.is_file():
        raise FileNotFoundError(
            f"{str(file)!r} is missing: the version was exported with keras_model=False, or its model's "
            "class has no get_config. Load the model from its .keras file."
        )
    model = build(file.read_text(encoding="utf-8"), custom_objects)
    weights = tf.saved_model.load(str(path)).weights
    try:
        restore(model, keras_state.read(state, weights))
    except ValueError as error:
        raise ValueError(
            f"The model in {str(file)!r} does not match the weights in {str(path)!r}: its layers or "
            f"the shapes of its weights differ. {error} Use the code of the release that exported it."
        ) from error
    return model


def restore(model: keras.Model, state: keras_state.State) -> None:
    """Restores the saved state of another model into a newly built one.

    Raises:
        ValueError: for state that the model does not accept or does not know.
    """
    keras_state.restore(model, state)
    own = keras_state.collect(model)
    names, known = ({place for place, _ in keras_state.flat(of.variables)} for of in (state, own))
    if names != known:
        raise ValueError(
            f"{len(names)} values were saved, the model has {len(known)}, among them others: "
            f"{', '.join(sorted(names ^ known)[:3])}."
        )
    keras_state.restore_others(own, state)
