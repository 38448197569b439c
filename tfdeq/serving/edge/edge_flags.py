"""The flags of an export that say which files for small devices a version has."""

import re

from absl import flags

from tfdeq.serving.edge.converted import FORMATS, Converted
from tfdeq.serving.edge.litert import DEFAULT_SIGNATURES, convert_kind
from tfdeq.serving.kinds.kind import Kind


def converted(kind: Kind, values: flags.FlagValues) -> dict[str, Converted]:
    """Returns name -> converted model, by the flags of `define`; {} without a format of `FORMATS`."""
    named = (text.split("=", 1) for text in values.edge_shapes)
    shapes = {name: [int(size) for size in sizes.split("x")] for name, sizes in named}
    found = {}
    for key, format in FORMATS.items():
        if key in values.format:
            precision = values.litert_precision if key == "litert" else "float32"
            found[format.names[precision]] = convert_kind(
                kind,
                signatures=values.edge_signatures,
                shapes=shapes,
                batch_size=values.edge_batch_size,
                max_steps_limit=values.max_steps_limit,
                precision=precision,
                format=key,
            )
    return found


def define(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags in `values`."""
    flags.DEFINE_list(
        "format",
        ["savedmodel"],
        "Formats of the version, separated by commas. litert, for phones and other small devices, also "
        "writes assets.extra/model.tflite, and onnx, for ONNX Runtime, assets.extra/model.onnx. The "
        "SavedModel is always written.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "litert_precision",
        "float32",
        list(FORMATS["litert"].names),
        "Precision of the weights in the LiteRT file, which float16 makes half as large, and int8 a "
        "quarter. The computation stays in float32.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "edge_signatures",
        list(DEFAULT_SIGNATURES),
        "Signatures of the LiteRT or ONNX model. An ONNX model has one.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "edge_batch_size",
        1,
        "Examples in a call of the LiteRT or ONNX model.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_list(
        "edge_shapes",
        [],
        "Sizes of inputs of the LiteRT or ONNX model, without the batch, for example tokens=64 or "
        "image=28x28x1. Default: those of the run's test data.",
        flag_values=values,
    )
    for name in ("signatures", "batch_size", "shapes"):  # their names before there was ONNX
        flags.DEFINE_alias(f"litert_{name}", f"edge_{name}", flag_values=values)
    _register_checks(values)


def _register_checks(values: flags.FlagValues) -> None:
    known = ("savedmodel", *FORMATS)
    flags.register_validator(
        "format",
        lambda formats: set(formats) <= set(known),
        f"must be of {', '.join(known)}",
        flag_values=values,
    )
    flags.register_validator(
        "edge_shapes",
        lambda shapes: all(re.fullmatch(r"\w+=[1-9]\d*(x[1-9]\d*)*", text) for text in shapes),
        "must be like tokens=64 or image=28x28x1",
        flag_values=values,
    )
