"""Valid names of a signature's inputs, and names of a model's nested outputs."""

import keyword
import re
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

CERTIFIED_RADIUS = "certified_radius"
# The names that tf.function and SavedModel do not change; with other names they may also fail.
_INPUT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def require_inputs(names: Iterable[str]) -> None:
    """Checks that a signature can have inputs with these names.

    Raises:
        ValueError: for a name that would be changed on the way to the server, or two that differ only
            in case.
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

    The keys of a list or tuple inside the dict are 0, 1, …

    Raises:
        ValueError: for a key that is empty or not a text, or a leaf that is not a tensor.
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
