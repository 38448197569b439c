"""A converted model, as a version holds it."""

from typing import Any, NamedTuple

# Precision of the stored weights -> name of the file beside a version's card.
NAMES = {
    "float32": "model.tflite",
    "float16": "model_float16.tflite",
    "int8": "model_int8.tflite",
}


class Converted(NamedTuple):
    """A LiteRT file's content, and its description for the model card."""

    content: bytes
    described: dict[str, Any]
