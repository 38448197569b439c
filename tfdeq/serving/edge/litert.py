"""Converts models to LiteRT files, which phones and other small devices run without TensorFlow.

ONNX files are made of these; see `onnx_file`.
"""

import os
import pathlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdeq.numerics.fixed_shapes import for_litert
from tfdeq.programs.paths import expanded
from tfdeq.programs.workdir import write_atomically, writing
from tfdeq.serving.edge import onnx_file
from tfdeq.serving.edge.converted import FORMATS, Converted, format_of
from tfdeq.serving.edge.stored_weights import with_stored_weights
from tfdeq.serving.kinds import runs
from tfdeq.serving.kinds.kind import Kind
from tfdeq.serving.signatures.signature import Signature, input_specs
from tfdeq.serving.versions import saved_graph

DEFAULT_SIGNATURES = ("serving_default",)
# How the converter names an operation that LiteRT lacks.
_LACKING = re.compile(r"'tf\.(\w+)' op is neither")


def convert(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    inputs: Any = None,
    signatures: Sequence[str] = DEFAULT_SIGNATURES,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch_size: int = 1,
    max_steps_limit: int | None = None,
    precision: str = "float32",
) -> pathlib.Path:
    """Writes a model as a LiteRT or ONNX file with the signatures that `tfdeq.serving.export` serves.

    The file uses the operations of its format only, so it runs without TensorFlow: LiteRT's on a phone too,
    ONNX's wherever ONNX Runtime runs. An answer has the same residual, steps and status as a served one. All
    sizes are fixed, and requests are not checked: they must have these sizes.

    An ONNX file has one signature. It is made of the LiteRT file by tf2onnx, which the extra
    `pip install 'tfdeq[onnx]'` installs.

    Args:
        model: a built model; see `tfdeq.serving.export`.
        path: the file to write, replaced if it exists. `~` is the home folder. A name that ends in .onnx
            makes an ONNX file, any other a LiteRT file, usually named .tflite.
        inputs: nest of tf.TensorSpec like the model's input; None: a functional model's own.
        signatures: names of the signatures to convert.
        shapes: input name -> its shape without the batch, for inputs whose sizes the model leaves open.
        batch_size: number of examples in a call.
        max_steps_limit: see `tfdeq.serving.export`.
        precision: of the stored weights, "float32" or, in LiteRT files, "float16" or "int8". The computation
            is in float32. With float16 or int8 weights the file is a half or a quarter as large, and its
            answers are those of the rounded weights: the residual is with respect to these.

    Returns:
        The path of the file.

    Raises:
        ValueError: for unknown names, open sizes, or operations that the format lacks; the message names
            them.
        ImportError: for an ONNX file without tf2onnx.

    Example:
        >>> import tempfile, tfdeq
        >>> x, z = keras.Input((2,), name="x"), keras.Input((2,))
        >>> cell = keras.Model([z, x], keras.ops.tanh(x - 0.5 * z))
        >>> model = keras.Model(x, tfdeq.DEQLayer(cell, "anderson")(x))
        >>> path = convert(model, f"{tempfile.mkdtemp()}/model.tflite")
        >>> from tfdeq.serving.edge.interpreter import Interpreter
        >>> answer = Interpreter(path).answer("serving_default", {"x": [[1.0, -1.0]]})
        >>> int(answer["status"][0])
        0
    """
    path = expanded(path)
    converted = convert_kind(
        runs.of_model(model, inputs),
        signatures=signatures,
        shapes=shapes,
        batch_size=batch_size,
        max_steps_limit=max_steps_limit,
        precision=precision,
        format=format_of(path),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(str(path), lambda part: pathlib.Path(part).write_bytes(converted.content))
    return path


def convert_kind(
    kind: Kind,
    *,
    signatures: Sequence[str] = DEFAULT_SIGNATURES,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch_size: int = 1,
    max_steps_limit: int | None = None,
    precision: str = "float32",
    format: str = "litert",
) -> Converted:
    """Returns a model as a converted file's content; see `convert`.

    Args:
        kind: the model and its data. If it has examples, sizes that the model leaves open are theirs.
        format: of `FORMATS`.
    """
    precisions = FORMATS[format].names
    if precision not in precisions:
        raise ValueError(
            f"precision must be one of {', '.join(precisions)}; received {precision!r}."
        )
    if format == "onnx" and len(signatures) > 1:
        raise ValueError(
            f"An ONNX file has one signature; received {', '.join(signatures)}. Write a file for each."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; received {batch_size}.")
    known = {name: value.shape[1:] for name, value in (kind.warm_up() or {}).items()}
    with for_litert(batch_size, {**known, **(shapes or {})}):
        traced = kind.traced(
            jit_compile=False, compaction=False, max_steps_limit=max_steps_limit, only=signatures
        )
    unknown = sorted(set(signatures) - set(traced))
    if unknown or not signatures:
        raise ValueError(
            f"The model has no signature {', '.join(unknown) or '(none was named)'}. It has: "
            f"{', '.join(kind.signature_names())}."
        )
    chosen = {name: traced[name] for name in signatures}
    content = _converted(kind.model, chosen, precision)
    if format == "onnx":
        content = onnx_file.from_litert(content, *chosen)
    described = {
        "format": format,
        "precision": precision,
        "batch_size": batch_size,
        "bytes": len(content),
        "signatures": {name: _shapes(signature) for name, signature in chosen.items()},
    }
    return Converted(content, described)


def _shapes(signature: Signature) -> dict[str, list[int]]:
    specs = input_specs(signature.function)
    return {name: spec.shape.as_list() for name, spec in specs.items()}


def _converted(model: keras.Model, signatures: Mapping[str, Signature], precision: str) -> bytes:
    functions = {name: signature.function for name, signature in signatures.items()}
    with tempfile.TemporaryDirectory() as folder:
        with writing(folder, tf.errors.OpError):
            saved_graph.write(model, functions, pathlib.Path(folder))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(functions))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            content = converter.convert()
        except Exception as error:  # the converter's errors have no common class
            lacking = sorted(set(_LACKING.findall(str(error))))
            found = f": it lacks {', '.join(lacking)}" if lacking else ""
            raise ValueError(
                f"LiteRT cannot run the signature {', '.join(signatures)} of the model {model.name!r}"
                f"{found}. Replace these operations in the model, or choose another solver or other "
                f"signatures. The converter said: {str(error)[:300]}"
            ) from error
    return content if precision == "float32" else with_stored_weights(content, precision)
