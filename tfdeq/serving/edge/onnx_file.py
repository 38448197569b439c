"""Makes ONNX files, which ONNX Runtime runs, of LiteRT files."""

import contextlib
import logging
import math
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from tensorflow.lite.tools import flatbuffer_utils

from tfdeq.serving.edge.runtimes import OnnxRuntime

# The highest version of ONNX's operations that tf2onnx is tested with.
_OPSET = 18
# How tf2onnx names an operation of LiteRT that it cannot convert.
_UNKNOWN = "TFL_"


def from_litert(content: bytes, signature: str) -> bytes:
    """Returns a LiteRT file's only signature as an ONNX file, whose graph has the signature's name.

    Inputs and outputs have the signature's names, shapes and types. ONNX needs different names for both, so
    an output that is named like an input has `OnnxRuntime.OUTPUT` after its name.

    Raises:
        ImportError: if tf2onnx is not installed.
        ValueError: for operations that it cannot convert.
    """
    try:
        import onnx
        import tf2onnx
    except ImportError as error:
        raise ImportError(
            "ONNX files need the packages tf2onnx and onnx. Install them: pip install 'tfdeq[onnx]'. "
            f"Python said: {error}"
        ) from error
    with tempfile.TemporaryDirectory() as folder, _quiet("tf2onnx"):
        path = pathlib.Path(folder, "model.tflite")
        path.write_bytes(_renamed(content))
        handlers = {"TFL_GELU": _gelu, "Select": _select, "SelectV2": _select}
        model, _ = tf2onnx.convert.from_tflite(
            str(path),
            opset=_OPSET,
            custom_op_handlers={name: (handler, []) for name, handler in handlers.items()},
        )
    lacking = sorted({name for name in _operations(model.graph) if name.startswith(_UNKNOWN)})
    if lacking:
        raise ValueError(
            f"tf2onnx cannot convert the signature {signature}: it lacks "
            f"{', '.join(name.removeprefix(_UNKNOWN) for name in lacking)} of LiteRT. Replace these "
            "operations in the model, or choose another solver or another signature."
        )
    model.graph.name = signature
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _renamed(content: bytes) -> bytes:
    """Returns a LiteRT file whose tensors have short and unique names; those of its signature have its names.

    tf2onnx takes tensors with equal names, which LiteRT permits, for the same.
    """
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    (signature,) = model.signatureDefs
    for number, graph in enumerate(model.subgraphs):
        for index, tensor in enumerate(graph.tensors):
            tensor.name = f"{number}.{index}".encode()
    tensors = model.subgraphs[signature.subgraphIndex].tensors
    inputs = {given.name for given in signature.inputs}
    for given in signature.inputs:
        tensors[given.tensorIndex].name = given.name
    for found in signature.outputs:
        more = OnnxRuntime.OUTPUT.encode() if found.name in inputs else b""
        tensors[found.tensorIndex].name = found.name + more
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _operations(graph: Any) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _operations(attribute.g)


def _gelu(graph: Any, node: Any, name: str, arguments: list) -> None:
    """Replaces LiteRT's GELU, which tf2onnx does not know, by ONNX's operations."""

    def constant(value: float) -> str:
        return graph.make_const(f"{name}_{value}", np.array(value, np.float32)).output[0]

    def make(operation: str, *inputs: str) -> str:
        return graph.make_node(operation, list(inputs)).output[0]

    (x,) = node.input
    if node.get_attr_value("approximate"):
        cube = make("Mul", x, make("Mul", x, x))
        argument = make("Add", x, make("Mul", cube, constant(0.044715)))
        share = make("Tanh", make("Mul", argument, constant(math.sqrt(2 / math.pi))))
    else:
        share = make("Erf", make("Mul", x, constant(math.sqrt(1 / 2))))
    factor = make("Mul", make("Add", share, constant(1.0)), constant(0.5))
    shapes, dtypes = node.output_shapes, node.output_dtypes
    graph.remove_node(name)
    graph.make_node(
        "Mul", [x, factor], outputs=node.output, name=name, shapes=shapes, dtypes=dtypes
    )


def _select(graph: Any, node: Any, name: str, arguments: list) -> None:
    """Replaces a choice between tensors by ONNX's Where.

    tf2onnx would make it a sum of products with 0 and 1, which is NaN if what is not chosen is NaN or
    infinite.
    """
    from onnx import TensorProto

    (condition, yes, no), dtype = node.input, graph.get_dtype(node.output[0])
    shapes, outputs = node.output_shapes, node.output
    sizes, rank = graph.get_shape(condition), len(shapes[0])

    def make(operation: str, *inputs: str) -> str:
        return graph.make_node(operation, list(inputs)).output[0]

    if node.type == "Select" and len(sizes) == 1 and rank > 1:  # chooses whole rows
        shape = np.array([sizes[0]] + [1] * (rank - 1), np.int64)
        condition = make("Reshape", condition, graph.make_const(f"{name}_rows", shape).output[0])
    operation, inputs = "Where", [condition, yes, no]
    if dtype == TensorProto.BOOL:  # for which ONNX Runtime has no Where
        operation, inputs = (
            "Or",
            [make("And", condition, yes), make("And", make("Not", condition), no)],
        )
    graph.remove_node(name)
    graph.make_node(operation, inputs, outputs=outputs, name=name, shapes=shapes, dtypes=[dtype])


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Hides what a library logs: what matters of it is in the errors."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
