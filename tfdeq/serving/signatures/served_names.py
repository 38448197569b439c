"""Which names a signature's inputs can have, and how a model's nested outputs are named."""

import keyword
import re
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

# What tf.function and SavedModel keep as it is; they change other names of inputs, or fail.
_INPUT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def require_inputs(names: Iterable[str]) -> None:
    """Checks that a signature can have inputs of these names.

    Raises:
        ValueError: a name that is changed on the way to the server, or two that differ in case alone.
    """
    by_lower: dict[str, str] = {}
    for name in names:
        if not _INPUT_NAME.fullmatch(name) or keyword.iskeyword(name) or name == "self":
            raise ValueError(
                f"An input of a signature cannot be named {name!r}. A name has only letters A to Z, "
                "digits and _, begins with a letter, and is neither 'self' nor a Python keyword. "
                "Rename the model's input (for an equilibrium, its DEQLayer), or pass new names: "
                "inputs=tf.TensorSpec([None, ...], dtype, name), or a nest of those."
            )
        other = by_lower.setdefault(name.lower(), name)
        if other != name:
            raise ValueError(
                f"The inputs {other!r} and {name!r} differ only in case, and a SavedModel cannot "
                "distinguish them. Rename one of them."
            )


def leaves(outputs: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, tf.Tensor]]:
    """Returns the tensors of a dict of nests with their names: the keys on the path, joined by _.

    Of a list or tuple within the dict the keys are 0, 1, …

    Raises:
        ValueError: a key that is no text or empty, or a leaf that is no tensor.
    """
    found: list[tuple[str, tf.Tensor]] = []
    for name, child in outputs.items():
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"An output of a signature cannot be named {name!r}. Rename the model's output. A name "
                "must be a non-empty string."
            )
        here = (*path, name)
        if isinstance(child, list | tuple):
            child = {str(index): item for index, item in enumerate(child)}
        if isinstance(child, Mapping):
            found += leaves(child, here)
        elif tf.is_tensor(child):
            found.append(("_".join(here), child))
        else:
            raise ValueError(
                f"The model's output {'_'.join(here)!r} has the type {type(child).__name__}, but a "
                "server can only return tensors. Remove it from the model's outputs."
            )
    return found
