"""Inputs and outputs of a served signature, and arrays with exactly these dtypes and shapes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2

from tfdeq.serving.client.client_calls import NoSignatureError, ServerError

SETTINGS = ("tolerance", "max_steps")


class Tensor(NamedTuple):
    """One input or output of a signature."""

    dtype: tf.DType
    shape: tf.TensorShape  # [B, ...]; the rank may be unknown


class ServedSignature(NamedTuple):
    """A signature as described by the server's metadata."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


class VersionStatus(NamedTuple):
    """A version of a model on a server."""

    version: int
    state: str  # "START", "LOADING", "AVAILABLE", "UNLOADING" or "END"
    error: str  # why it could not be loaded; else ""


def served_signature(
    found: get_model_metadata_pb2.SignatureDefMap, signature: str
) -> ServedSignature:
    """Returns a signature from a server's metadata.

    Raises:
        NoSignatureError: if the model has no such signature.
        ServerError: if the metadata cannot be read.
    """
    if signature not in found.signature_def:
        raise NoSignatureError(
            f"The server refused: the model has no signature {signature!r}. Ask for one that it has: "
            f"{', '.join(sorted(found.signature_def)) or 'none'}."
        )
    definition = found.signature_def[signature]
    try:
        return ServedSignature(
            *(
                {
                    name: Tensor(tf.as_dtype(info.dtype), tf.TensorShape(info.tensor_shape))
                    for name, info in sorted(tensors.items())
                }
                for tensors in (definition.inputs, definition.outputs)
            )
        )
    except (TypeError, ValueError) as error:
        raise ServerError(
            f"The server's metadata of the signature {signature!r} cannot be read: {error} Export the "
            "model again, for a server of the same TensorFlow."
        ) from error


def tensors_text(tensors: Mapping[str, Tensor]) -> str:
    """Returns names, dtypes and shapes of a signature's inputs or outputs, for people."""
    shown = []
    for name, tensor in tensors.items():
        sizes = None if tensor.shape.rank is None else tensor.shape.as_list()
        sizes = (
            ["…"] if sizes is None else ["B", *("any" if n is None else str(n) for n in sizes[1:])]
        )
        shown.append(f"{name} {tensor.dtype.name} [{', '.join(sizes)}]")
    return ", ".join(shown)


def batch_size(given: Mapping[str, np.ndarray]) -> int:
    """Returns the number of examples B of arrays [B, ...].

    Raises:
        ValueError: for no arrays, a scalar, an empty batch, or different batch sizes.
    """
    sizes = {name: value.shape[0] if value.ndim else None for name, value in given.items()}
    if not sizes:
        raise ValueError("inputs must name at least one array [B, ...]; received none.")
    for name, size in sizes.items():
        if not size:
            what = "a scalar" if size is None else "an empty batch"
            raise ValueError(
                f"The input {name!r} must be [B, ...], with B >= 1 examples; received {what}."
            )
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise ValueError(f"All inputs must have one batch size; received {listed}.")
    return next(iter(sizes.values()))


def rows_of(settings: Mapping[str, Any], rows: slice, batch: int) -> dict[str, Any]:
    """Returns the settings of a part of a batch.

    Args:
        settings: as of `request_values`. rows: the part. batch: number of examples of the whole batch.

    Raises:
        ValueError: for a setting that is neither one number nor one for each example.
    """
    found = {}
    for name, value in settings.items():
        shape = np.shape(value)
        if shape not in ((), (batch,)):
            raise ValueError(
                f"{name} must be one number, or one for each of the {batch} examples; received the "
                f"shape {list(shape)}."
            )
        found[name] = np.asarray(value)[rows] if shape else value
    return found


def joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the answers to the parts of a batch as one answer.

    Raises:
        ServerError: for parts whose rows have different shapes.
    """
    found = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if len({value.shape[1:] for value in values}) > 1 or not values[0].ndim:
            shapes = ", ".join(str(list(value.shape)) for value in values)
            raise ServerError(
                f"The answers to the parts of the batch cannot be joined: {name!r} has the shapes {shapes}. "
                "Ask without max_batch_size."
            )
        found[name] = np.concatenate(values)
    return found


def request_values(
    given: Mapping[str, np.ndarray], served: ServedSignature, settings: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Returns a request's arrays, with the dtypes that the signature takes.

    Args:
        given: name -> array [B, ...], B >= 1.
        served: the signature.
        settings: "tolerance" and "max_steps": scalars or [B]; None: the given input, else 0, the
            model's own, if the signature has that input.

    Raises:
        ValueError: for unknown or missing names, a shape or batch that does not fit, or a value that
            the dtype cannot represent.
    """
    batch = batch_size(given)
    given = dict(given)
    for name, value in settings.items():
        if value is None and (name in given or name not in served.inputs):
            continue
        value = np.asarray(0 if value is None else value)
        if value.shape not in ((), (batch,)):
            raise ValueError(
                f"{name} must be one number, or one for each of the {batch} examples; received the "
                f"shape {list(value.shape)}."
            )
        given[name] = np.broadcast_to(value, [batch])
    unknown = sorted(set(given) - set(served.inputs))
    missing = sorted(set(served.inputs) - set(given))
    if unknown or missing:
        raise ValueError(
            "The inputs are not those of the signature: "
            f"unknown: {', '.join(unknown) or 'none'}; missing: {', '.join(missing) or 'none'}. It "
            f"takes {', '.join(served.inputs)}."
        )
    for name, value in given.items():
        if not served.inputs[name].shape.is_compatible_with(value.shape):
            raise ValueError(
                f"The input {name!r} is {_text(served.inputs[name].shape)}; received "
                f"{list(value.shape)}."
            )
    return {
        name: as_dtype(given[name], tensor.dtype, f"The input {name!r}")
        for name, tensor in served.inputs.items()
    }


def answer_values(
    found: Mapping[str, np.ndarray], served: ServedSignature, batch: int
) -> dict[str, np.ndarray]:
    """Returns a server's answer, with the dtypes that the signature returns.

    Raises:
        ServerError: if the answer does not match the signature.
    """
    problem = None
    if set(found) != set(served.outputs):
        problem = f"it has {', '.join(sorted(found)) or 'nothing'}, not {', '.join(served.outputs)}"
    for name, tensor in () if problem else served.outputs.items():
        value = found[name]
        # JSON does not show the dimensions after one of size 0.
        if value.size and not tensor.shape.is_compatible_with(value.shape):
            problem = f"{name!r} is {list(value.shape)}, not {_text(tensor.shape)}"
        # A signature that takes these settings returns one row per example.
        elif set(SETTINGS) <= set(served.inputs) and value.shape[:1] != (batch,):
            problem = f"{name!r} has the shape {list(value.shape)}, for a batch of {batch}"
    if problem is None:
        try:
            return {
                name: as_dtype(found[name], tensor.dtype, f"{name!r}")
                for name, tensor in served.outputs.items()
            }
        except ValueError as error:
            problem = str(error).rstrip(".")
    raise ServerError(
        f"The server's answer does not match its signature: {problem}. If a new version was being "
        "loaded, try again. Otherwise check which server answers at this address."
    )


def as_dtype(value: np.ndarray, dtype: tf.DType, name: str) -> np.ndarray:
    """Returns the array in another dtype, with the same values; floating-point ones are rounded.

    Args:
        value: of any dtype; integers beyond all NumPy dtypes are objects.
        dtype: the dtype to return.
        name: name of the value in messages.

    Raises:
        ValueError: for a value that the dtype cannot represent.
    """
    if dtype == tf.string:
        return _as_bytes(value, name)
    target = dtype.as_numpy_dtype
    if value.dtype == target:
        return value
    if value.dtype == object:
        strange = [item for item in value.ravel() if not isinstance(item, int | float)]
        if strange:
            raise ValueError(f"{name} is {dtype.name}; received {strange[0]!r:.200}.")
        if not (dtype.is_integer or dtype.is_bool):
            value = _cast(value, np.float64, dtype, name)
    elif value.dtype.kind in "SUMmV" and value.dtype != tf.bfloat16.as_numpy_dtype:
        raise ValueError(f"{name} is {dtype.name}; received {value.dtype}.")
    if value.dtype.kind == "c" and not dtype.is_complex:
        raise ValueError(f"{name} is {dtype.name}; received complex numbers.")
    if (dtype.is_integer or dtype.is_bool) and value.size:
        _require_whole_numbers(value, dtype, name)
    return _cast(value, target, dtype, name)


def _cast(value: np.ndarray, target: Any, dtype: tf.DType, name: str) -> np.ndarray:
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            cast = value.astype(target)
    except OverflowError as error:  # an integer beyond the range of floats
        raise ValueError(f"{name} is {dtype.name}, which cannot hold a value: {error}.") from error
    if dtype.is_floating and value.dtype != object:
        lost = np.isfinite(value) & ~np.isfinite(cast)
        if lost.any():
            raise ValueError(
                f"{name} is {dtype.name}, up to {dtype.max}; received {value[lost].flat[0]}."
            )
    return cast


def _require_whole_numbers(value: np.ndarray, dtype: tf.DType, name: str) -> None:
    low, high = (0, 1) if dtype.is_bool else (int(dtype.min), int(dtype.max))
    if value.dtype.kind not in "iubO":
        wide = value.astype(np.float64)
        # The largest int64 is not a float, but the next integer is.
        bad = (wide != np.trunc(wide)) | ~((wide >= low) & (wide < float(high) + 1))
        wrong = wide[bad][0].item() if bad.any() else None
    else:
        extremes = [int(value.min()), int(value.max())]
        wrong = next((item for item in extremes if not low <= item <= high), None)
        if wrong is None and value.dtype == object:
            wrong = next((item for item in value.ravel() if item != int(item)), None)
    if wrong is not None:
        raise ValueError(
            f"{name} is {dtype.name}, whole numbers from {low:,} to {high:,}; received {wrong}."
        )


def _as_bytes(value: np.ndarray, name: str) -> np.ndarray:
    items = value.ravel().tolist()
    strange = [item for item in items if not isinstance(item, str | bytes)]
    if strange:
        raise ValueError(f"{name} is text; received {strange[0]!r:.200}.")
    found = np.empty([len(items)], object)
    found[:] = [item.encode() if isinstance(item, str) else item for item in items]
    return found.reshape(value.shape)


def _text(shape: tf.TensorShape) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in shape.as_list())}]"
