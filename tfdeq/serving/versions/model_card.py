"""The model card, a JSON file that describes a version, its inputs and outputs, and its origin."""

import datetime
import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Iterator, Mapping
from typing import Any

import tfdeq
from tfdeq.serving.signatures.signature import Signature, input_specs
from tfdeq.serving.versions import costs, manifest

FOLDER, NAME = manifest.FOLDER, "model_card.json"
_LIBRARIES = ("tensorflow", "keras", "numpy")


def signature_card(signatures: Mapping[str, Signature]) -> dict[str, Any]:
    """Returns name -> limits, and dtype, shape (null: any size) and meaning of inputs and outputs."""
    return {
        name: {
            "joined": signature.joined,
            "max_request_values": signature.max_request_values,
            "inputs": {
                argument: _tensor(spec, signature.inputs.get(argument))
                for argument, spec in input_specs(signature.function).items()
            },
            "outputs": {
                output: _tensor(tensor, signature.outputs.get(output))
                for output, tensor in signature.function.structured_outputs.items()
            },
        }
        for name, signature in signatures.items()
    }


def general_card(version: int, signatures: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of every card: version, time (UTC), library versions and signatures."""
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


def write(folder: pathlib.Path, card: Mapping[str, Any]) -> None:
    """Writes the card of the version in a folder."""
    (folder / FOLDER / NAME).write_text(to_json(card), encoding="utf-8")


def lines(card: Mapping[str, Any]) -> Iterator[str]:
    """Yields what an export prints of its card: further files, costs of signatures, quality."""
    for name, file in card.get("edge", {}).items():
        yield f"{FOLDER}/{name}: {file['bytes']:,} bytes"
    for name, cost in card.get("signature_costs", {}).items():
        yield costs.line(name, cost)
    for row in card.get("quality_by_tolerance", []):
        yield quality_line(row)


def quality_line(row: Mapping[str, Any]) -> str:
    """Returns a row of the card's table in words."""
    beside = ("tolerance", "residual", "largest_residual", "steps", "converged")
    figures = [f"{name.replace('_', ' ')} {row[name]:.4f}" for name in row if name not in beside]
    of = f"tolerance {row['tolerance']:g}: " if row["tolerance"] else ""
    return (
        f"{of}{', '.join(figures)} in {row['steps']:.1f} steps, largest residual "
        f"{row['largest_residual']:.1e}, {row['converged']:.0%} converged"
    )


def to_json(card: Mapping[str, Any]) -> str:
    return json.dumps(card, indent=1, ensure_ascii=False) + "\n"


def _tensor(spec: Any, meaning: str | None) -> dict[str, Any]:
    described = {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
    return {**described, "meaning": meaning} if meaning else described
