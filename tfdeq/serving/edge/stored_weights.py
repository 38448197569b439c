"""Stores the weights of a LiteRT file in float16 or int8; what computes the answer stays in float32."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

# Matrices with fewer values stay in float32, and so do all vectors: they save nothing, and among them are
# the solver's settings, which must not be rounded.
_FEWEST = 64
_LARGEST = 127  # of int8, the same on both sides of 0
# Bytes of a scale and its zero point.
_SCALE_BYTES = 12
_SMALL_SHARE = 0.1


class _Stored(NamedTuple):
    """A matrix as it is stored."""

    buffer: int  # position of its values
    type: int
    quantization: Any  # of the schema, or None


def with_stored_weights(content: bytes, precision: str) -> bytes:
    """Returns a LiteRT file with its constant matrices in another precision.

    An operator makes float32 of each matrix again, so that everything is computed in float32, and a solve
    gets as close to its equilibrium as with float32 weights. TensorFlow's own conversions do not serve
    equilibria: to float16 it rounds every constant, so also tolerances, and bounds that float16 cannot
    represent; with int8 weights it rounds what they are multiplied with in every evaluation, and no residual
    gets below about 0.02.

    Args:
        content: a file in float32.
        precision: "float16", or "int8": each row or column of a matrix in steps of its largest value / 127,
            whichever of the two loses less.
    """
    store = {"float16": _as_float16, "int8": _as_int8}[precision]
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    code = len(model.operatorCodes)
    model.operatorCodes.append(_dequantize())
    stored: dict[tuple, _Stored] = {}  # tensors of several graphs may share a buffer
    for graph in model.subgraphs:
        added = []
        for index in range(len(graph.tensors)):
            operator = _replace(model, graph, index, code, store, stored)
            if operator is not None:
                added.append(operator)
        graph.operators = [*added, *(graph.operators or [])]
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used.update(entry.buffer for entry in model.metadata or [])
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _replace(
    model: Any,
    graph: Any,
    index: int,
    code: int,
    store: Callable[[np.ndarray], tuple[np.ndarray, int, Any] | None],
    stored: dict[tuple, _Stored],
) -> Any:
    """Stores a constant, and returns the operator that makes float32 of it; None: it stays."""
    tensor = graph.tensors[index]
    data = model.buffers[tensor.buffer].data
    large = tensor.type == schema.TensorType.FLOAT32 and data is not None
    if not large or len(tensor.shape) < 2 or np.prod(tensor.shape) < _FEWEST:
        return None
    key = (tensor.buffer, *tensor.shape)
    if key not in stored:
        found = store(np.frombuffer(bytes(data), np.float32).reshape(tensor.shape))
        if found is None:
            return None
        values, kind, quantization = found
        stored[key] = _Stored(len(model.buffers), kind, quantization)
        model.buffers.append(schema.BufferT())
        model.buffers[-1].data = np.frombuffer(values.tobytes(), np.uint8)
    small = schema.TensorT()
    small.name, small.shape = tensor.name + b"_stored", tensor.shape
    small.buffer, small.type, small.quantization = stored[key]
    tensor.buffer = 0  # by convention, of tensors without data
    graph.tensors.append(small)
    operator = schema.OperatorT()
    operator.opcodeIndex = code
    operator.inputs, operator.outputs = [len(graph.tensors) - 1], [index]
    operator.builtinOptionsType = schema.BuiltinOptions.DequantizeOptions
    operator.builtinOptions = schema.DequantizeOptionsT()
    return operator


def _as_float16(values: np.ndarray) -> tuple[np.ndarray, int, None] | None:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    # A value below float16's range may become 0 beside larger ones, but none may become infinite.
    if not np.isfinite(half).all() or (values.any() and not half.any()):
        return None
    return half, schema.TensorType.FLOAT16, None


def _as_int8(values: np.ndarray) -> tuple[np.ndarray, int, Any] | None:
    if not np.isfinite(values).all():
        return None
    # Along an axis, the scales take this share of the three bytes that int8 saves of each value.
    shares = {
        axis: _SCALE_BYTES * values.shape[axis] / (3 * values.size) for axis in (0, values.ndim - 1)
    }
    least = min(shares.values())
    if least >= 1:
        return None
    axes = [axis for axis, share in shares.items() if share == least or share < _SMALL_SHARE]
    found = [(*_rounded(values, axis), axis) for axis in axes]
    rounded, scales, axis = min(found, key=lambda one: np.square(one[0] * one[1] - values).sum())
    quantization = schema.QuantizationParametersT()
    quantization.scale = scales.ravel()
    quantization.zeroPoint = np.zeros(scales.size, np.int64)
    quantization.quantizedDimension = axis
    return rounded.astype(np.int8), schema.TensorType.INT8, quantization


def _rounded(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns integers in -127 … 127, and the scale of each slice along an axis, broadcastable."""
    others = tuple(other for other in range(values.ndim) if other != axis)
    scales = np.abs(values).max(axis=others, keepdims=True) / np.float32(_LARGEST)
    scales = np.where(scales >= np.finfo(np.float32).tiny, scales, 1).astype(np.float32)
    return np.clip(np.round(values / scales), -_LARGEST, _LARGEST), scales


def _dequantize() -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
    code.version = 5  # the first that takes scales along an axis; 3 takes float16
    return code
