"""A converted model, as a version holds it, and the formats that there are."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple


class Format(NamedTuple):
    """A format of converted models."""

    title: str
    names: Mapping[str, str]  # precision of the stored weights -> name of the file beside the card


FORMATS = {
    "litert": Format(
        "LiteRT",
        {"float32": "model.tflite", "float16": "model_float16.tflite", "int8": "model_int8.tflite"},
    ),
    "onnx": Format("ONNX", {"float32": "model.onnx"}),
}


class Converted(NamedTuple):
    """A converted file's content, and its description for the model card."""

    content: bytes
    described: dict[str, Any]


def format_of(path: str | os.PathLike) -> str:
    """Returns the format of a file by its name: "onnx" for .onnx, otherwise "litert"."""
    return "onnx" if pathlib.Path(path).suffix.lower() == ".onnx" else "litert"
