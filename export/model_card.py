"""The model card: what a version is, takes, returns and was made from, as JSON beside the graph."""

import datetime
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

import tfdeq

NAME = "model_card.json"
_LIBRARIES = ("tensorflow", "keras", "numpy")


def signature_card(
    signatures: Mapping[str, tf.types.experimental.ConcreteFunction],
    inputs: Mapping[str, str] | None = None,
    outputs: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """Returns name -> inputs and outputs: dtype, shape (null: any size) and, where given, meaning.

    Args:
        signatures: name -> concrete function.
        inputs: input name -> meaning, for all signatures.
        outputs: signature name -> output name -> meaning.
    """
    card = {}
    for name, function in signatures.items():
        meanings = (outputs or {}).get(name, {})
        card[name] = {
            "inputs": {
                argument: _tensor(spec, (inputs or {}).get(argument))
                for argument, spec in _arguments(function).items()
            },
            "outputs": {
                output: _tensor(tensor, meanings.get(output))
                for output, tensor in function.structured_outputs.items()
            },
        }
    return card


def general_card(version: int, signatures: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what every card holds: version, time (UTC), library versions and signatures."""
    return {
        "version": version,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "libraries": {
            "python": platform.python_version(),
            "tfdeq": tfdeq.__version__,
            **{name: importlib.metadata.version(name) for name in _LIBRARIES},
        },
        "signatures": dict(signatures),
    }


def to_json(card: Mapping[str, Any]) -> str:
    return json.dumps(card, indent=1, ensure_ascii=False) + "\n"


def _arguments(function: tf.types.experimental.ConcreteFunction) -> dict[str, tf.TensorSpec]:
    positional, by_name = function.structured_input_signature
    return {**{spec.name: spec for spec in positional}, **by_name}


def _tensor(spec: Any, meaning: str | None) -> dict[str, Any]:
    described = {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
    return {**described, "meaning": meaning} if meaning else described
