"""Stores the weights of a LiteRT file in float16; what computes the answer stays in float32."""

from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

# Matrices with fewer values stay in float32, and so do all vectors: they save nothing, and among them are
# the solver's settings, which must not be rounded.
_FEWEST = 64


def with_half_weights(content: bytes) -> bytes:
    """Returns a LiteRT file with its constant matrices in float16, about half as large.

    TensorFlow's converter would round every constant, so also tolerances, and bounds that float16 cannot
    represent.
    """
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    code = len(model.operatorCodes)
    model.operatorCodes.append(_dequantize())
    halves: dict[int, int] = {}  # tensors of several graphs may share a buffer
    for graph in model.subgraphs:
        added = []
        for index in range(len(graph.tensors)):
            operator = _halve(model, graph, index, code, halves)
            if operator is not None:
                added.append(operator)
        graph.operators = [*added, *(graph.operators or [])]
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used.update(entry.buffer for entry in model.metadata or [])
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _halve(model: Any, graph: Any, index: int, code: int, halves: dict[int, int]) -> Any:
    """Makes a constant float16, and returns the operator that makes float32 of it; None: it stays."""
    tensor = graph.tensors[index]
    data = model.buffers[tensor.buffer].data
    large = tensor.type == schema.TensorType.FLOAT32 and data is not None
    if not large or len(tensor.shape) < 2 or np.prod(tensor.shape) < _FEWEST:
        return None
    if tensor.buffer not in halves:
        values = np.frombuffer(bytes(data), np.float32)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        # A value below float16's range may become 0 beside larger ones, but none may become infinite.
        if not np.isfinite(half).all() or (values.any() and not half.any()):
            return None
        halves[tensor.buffer] = len(model.buffers)
        model.buffers.append(schema.BufferT())
        model.buffers[-1].data = np.frombuffer(half.tobytes(), np.uint8)
    stored = schema.TensorT()
    stored.name, stored.shape = tensor.name + b"_float16", tensor.shape
    stored.type, stored.buffer = schema.TensorType.FLOAT16, halves[tensor.buffer]
    tensor.buffer = 0  # by convention, of tensors without data
    graph.tensors.append(stored)
    operator = schema.OperatorT()
    operator.opcodeIndex = code
    operator.inputs, operator.outputs = [len(graph.tensors) - 1], [index]
    operator.builtinOptionsType = schema.BuiltinOptions.DequantizeOptions
    operator.builtinOptions = schema.DequantizeOptionsT()
    return operator


def _dequantize() -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
    code.version = 3  # the first that takes float16
    return code
