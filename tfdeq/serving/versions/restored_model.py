"""Compares the model that a version restores with the exported one, before it is published."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tfdeq.serving.versions import keras_state, loading

# Largest difference between the two models' answers, relative to the largest number in the answer.
# Their states are equal bit for bit; the difference is that between two calls on the device.
LIMIT = 1e-4


def check(
    model: keras.Model,
    described: loading.Description,
    inputs: Any = None,
) -> None:
    """Builds the model again, as `tfdeq.serving.load_model` will, and compares the two.

    Their layers must save the same values and files, and their answers to some inputs must be the same.
    If the model cannot be built here, for example because its class is not registered with Keras,
    nothing is compared. `tfdeq.serving.load_model` then needs `custom_objects`, or raises Keras's
    error.

    Args:
        model: the exported model.
        described: result of `loading.describe`.
        inputs: some inputs, as the nest that the model is called with; None if none are known.

    Raises:
        ValueError: if a different model would be restored.
    """
    with _same_random_numbers():
        try:
            again = loading.build(described.text)
        except Exception:  # a user's from_config may raise anything
            return
        try:
            loading.restore(again, described.state)
            different = state_difference(again, described.state)
        except Exception as error:  # a layer's own load_own_variables may raise anything
            different = f"its state cannot be loaded. {error}"
        different = different or _answer_difference(model, again, inputs)
    if different:
        raise ValueError(
            f"tfdeq.serving.load_model would not restore the model {model.name!r} correctly: "
            f"{different} Correct get_config and from_config, or save_own_variables and "
            f"load_own_variables, of its layers, or {loading.WITHOUT}."
        )


@contextlib.contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Restores the state of Python's generator, from which Keras draws seeds of new layers."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def state_difference(again: keras.Model, state: keras_state.State) -> str:
    """Describes which parts of a state a rebuilt model lacks; "" if it has all."""
    own = keras_state.collect(again)
    files, expected = own.files, state.files
    for file in sorted(files.keys() | expected.keys()):
        if files.get(file) != expected.get(file):
            return f"what its layers save in {file!r} is not the same after loading it."
    pairs = zip(keras_state.flat(state.variables), keras_state.flat(own.variables), strict=True)
    for (place, value), (_, found) in pairs:
        value, found = keras_state.to_numpy(value), keras_state.to_numpy(found)
        if value.shape != found.shape or not _equal(value, found):
            return f"{place!r} is not the same after loading it."
    return ""


def _equal(value: np.ndarray, found: np.ndarray) -> bool:
    # Compared bit by bit, so that NaN equals itself and unusual dtypes need no arithmetic.
    return value.dtype == found.dtype and value.tobytes() == found.tobytes()


def _answer_difference(model: keras.Model, again: keras.Model, x: Any) -> str:
    states = [variable for variable in model.variables if not variable.trainable]
    before = [(variable, np.array(variable.numpy())) for variable in states]
    try:
        answer, repeated = ([], []) if x is None else (_answers(model, x), _answers(model, x))
    except Exception:  # the model does not take such inputs
        return ""
    finally:
        for variable, value in before:  # noise in inference advances its seed
            variable.assign(value)
    try:
        found = [] if x is None else _answers(again, x)
    except Exception as error:  # as above
        return f"it cannot be called. {error}"
    if len(found) != len(answer):
        return f"it returns {len(found)} tensors instead of {len(answer)}."
    for expected, once_more, value in zip(answer, repeated, found, strict=True):
        # Differences between two calls of the model itself do not count.
        limit = LIMIT + 10 * _difference(expected, once_more)
        if expected.shape != value.shape or not _difference(expected, value) <= limit:
            return f"its answers to the same input differ by {_difference(expected, value):.1e}."
    return ""


def _answers(model: keras.Model, x: Any) -> list[np.ndarray]:
    outputs = keras.tree.flatten(model(x, training=False))
    return [keras_state.to_numpy(output) for output in outputs]


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    """Returns the largest difference relative to the largest number; infinite if integers or NaN differ."""
    if expected.shape != found.shape:
        return float("inf")
    if expected.dtype.kind not in "biufcV" or expected.dtype.kind in "biu":
        return 0.0 if np.array_equal(expected, found) else float("inf")
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    both = np.isfinite(expected) & np.isfinite(found)
    same = np.array_equal(expected[~both], found[~both], equal_nan=True)
    scale = np.abs(expected[both]).max(initial=np.finfo(np.float32).tiny)
    difference = np.abs(found[both] - expected[both]).max(initial=0.0) / scale
    return float(difference) if same else float("inf")
