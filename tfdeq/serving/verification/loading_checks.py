"""Checks that `tfdeq.serving.load_model` restores the model that a version is verified against."""

import contextlib
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import keras
from absl import logging

from tfdeq.serving.verification.checks import Check
from tfdeq.serving.versions import keras_state, loading, manifest, restored_model

_NAME = "the Keras model of the version"
# An export may change these settings of the solvers.
_CHOSEN = ("patience", "absolute_tolerance")


def check_loaded(model: keras.Model, path: pathlib.Path) -> Check:
    """Checks that the version stores the model's own description and state.

    If the model cannot be built here, because its class is not registered with Keras, its description
    is compared, but not its state.
    """
    extra = path / manifest.FOLDER
    there = [name for name in (loading.NAME, keras_state.FOLDER) if (extra / name).exists()]
    if not there:
        return Check(_NAME, True, "the version gives none back (keras_model=False)", {})
    if len(there) == 1:
        return Check(_NAME, False, f"of its files there is only {there[0]}", {})
    own = loading.to_json(model)
    if own is None:
        return Check(_NAME, False, "its class does not say how it is built, the version does", {})
    text = (extra / loading.NAME).read_text(encoding="utf-8")
    try:
        same = _without_names(json.loads(own)) == _without_names(json.loads(text))
    except ValueError:
        same = False
    if not same:
        return Check(_NAME, False, f"{loading.NAME} describes another model", {})
    try:
        loading.build(text)
    except Exception as error:  # a user's from_config may raise anything
        return Check(_NAME, True, f"described as the model; it cannot be built here: {error}", {})
    try:
        with _quiet():
            again = loading.load_model(path)
        different = restored_model.state_difference(again, keras_state.collect(model))
    except Exception as error:  # a layer's own load_own_variables may raise anything
        different = f"it cannot be loaded: {error}"
    passed = (
        f"tfdeq.serving.load_model gives back the model, {again.count_params():,} weights"
        if not different
        else ""
    )
    return Check(_NAME, not different, different or passed, {})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides TensorFlow's warnings that functions were exported without their gradients."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _without_names(described: Any) -> Any:
    """Removes names, which Keras numbers anew, and settings that an export may choose."""
    if isinstance(described, dict):
        return {
            key: _without_names(value)
            for key, value in described.items()
            if key != "name" and key not in _CHOSEN
        }
    if isinstance(described, list):
        return [_without_names(value) for value in described]
    return re.sub(r"_\d+$", "", described) if isinstance(described, str) else described
