"""The flags of an export that say which files for small devices a version has."""

import re

from absl import flags

from tfdeq.serving.edge.converted import NAMES, Converted
from tfdeq.serving.edge.litert import DEFAULT_SIGNATURES, convert_kind
from tfdeq.serving.kinds.kind import Kind


def converted(kind: Kind, values: flags.FlagValues) -> dict[str, Converted]:
    """Returns name -> converted model, by the flags of `define`; {} without --format=litert."""
    if "litert" not in values.format:
        return {}
    named = (text.split("=", 1) for text in values.litert_shapes)
    found = convert_kind(
        kind,
        signatures=values.litert_signatures,
        shapes={name: [int(size) for size in sizes.split("x")] for name, sizes in named},
        batch_size=values.litert_batch_size,
        max_steps_limit=values.max_steps_limit,
        precision=values.litert_precision,
    )
    return {NAMES[values.litert_precision]: found}


def define(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags in `values`."""
    flags.DEFINE_multi_enum(
        "format",
        ["savedmodel"],
        ["savedmodel", "litert"],
        "Repeat it to write the version for LiteRT too (phones and other small devices), as "
        "assets.extra/model.tflite. The SavedModel is always written.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "litert_precision",
        "float32",
        list(NAMES),
        "Precision of the weights in the LiteRT file, which float16 makes half as large, and int8 a "
        "quarter. The computation stays in float32.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "litert_signatures",
        list(DEFAULT_SIGNATURES),
        "Signatures of the LiteRT model.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "litert_batch_size",
        1,
        "Examples in a call of the LiteRT model.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_list(
        "litert_shapes",
        [],
        "Sizes of inputs of the LiteRT model, without the batch, for example tokens=64 or image=28x28x1. "
        "Default: those of the run's test data.",
        flag_values=values,
    )
    flags.register_validator(
        "litert_shapes",
        lambda shapes: all(re.fullmatch(r"\w+=[1-9]\d*(x[1-9]\d*)*", text) for text in shapes),
        "must be like tokens=64 or image=28x28x1",
        flag_values=values,
    )
