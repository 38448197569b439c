"""Warm-up records: the requests that a server answers before it serves a version."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from tfdeq.serving.signatures.signature import Signature, input_specs

FOLDER = "assets.extra"
NAME = "tf_serving_warmup_requests"
# The server's limit: it refuses a version with more records.
MOST_RECORDS = 1000

Request = tuple[str, dict[str, np.ndarray]]  # signature, inputs


def requests(
    signatures: Mapping[str, Signature],
    examples: Mapping[str, np.ndarray],
    batch_sizes: Sequence[int],
) -> Iterator[Request]:
    """Yields one request for each signature and batch size, made from real inputs.

    Args:
        signatures: the signatures of the version.
        examples: input name -> [N, ...]; row i of all inputs is one example. Missing inputs with one
            number per example are 0, the model's own setting; an input that is an output of `encode`,
            such as a stream's last equilibrium, is computed by it for the examples.
        batch_sizes: the sizes that the server will use; examples are repeated to fill them.

    Raises:
        ValueError: for any other missing input, different numbers of rows, or too many records.
    """
    _check(signatures, examples, batch_sizes)
    for batch in batch_sizes:
        given = {name: _rows(value, batch) for name, value in examples.items()}
        if "encode" in signatures:
            function = signatures["encode"].function
            given = {**_call(function, _inputs(function, given, batch)), **given}
        for name, signature in signatures.items():
            yield name, _inputs(signature.function, given, batch)


def write(
    folder: pathlib.Path, model_name: str, records: Iterator[Request] | Sequence[Request]
) -> None:
    """Writes the file that the server looks for in a version folder."""
    (folder / FOLDER).mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / FOLDER / NAME)) as writer:
        for signature, inputs in records:
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = model_name
            request.model_spec.signature_name = signature
            for name, value in inputs.items():
                request.inputs[name].CopyFrom(_proto(value))
            writer.write(log.SerializeToString())


def _proto(value: np.ndarray) -> Any:
    """Returns a tensor's proto; if all entries are equal, as in an empty memory, only that number."""
    if value.size and (value == value.flat[0]).all():
        return tf.make_tensor_proto(value.flat[0], value.dtype, value.shape)
    return tf.make_tensor_proto(value)


def read(folder: pathlib.Path) -> list[Request]:
    """Reads a version's records; [] if it has none.

    Raises:
        ValueError: for a file that is not a TFRecord file of PredictionLog.
    """
    path = folder / FOLDER / NAME
    if not path.is_file():
        return []
    found = []
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            log = prediction_log_pb2.PredictionLog.FromString(record)
            request = log.predict_log.request
            inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
            found.append((request.model_spec.signature_name, inputs))
    except Exception as error:  # protobuf's and tf.data's errors have no common class
        raise ValueError(f"{str(path)!r} cannot be read as warm-up records: {error}") from error
    return found


def _check(signatures, examples, batch_sizes) -> None:
    if len(signatures) * len(batch_sizes) > MOST_RECORDS:
        raise ValueError(
            f"{len(signatures)} signatures at {len(batch_sizes)} batch sizes are more than the "
            f"{MOST_RECORDS} warm-up records that a server takes. Allow fewer batch sizes."
        )
    rows = {name: len(value) for name, value in examples.items()}
    if not rows or min(rows.values()) < 1 or len(set(rows.values())) > 1:
        raise ValueError(
            f"examples must be arrays of one and the same number of rows, at least 1; received {rows}."
        )
    encoded = signatures["encode"].function.structured_outputs if "encode" in signatures else {}
    for name, signature in signatures.items():
        for spec in input_specs(signature.function).values():
            known = spec.name in examples or spec.name in encoded or spec.shape.rank == 1
            if not known:
                raise ValueError(
                    f"The signature {name!r} takes {spec.name!r}, {spec.shape}; examples name only "
                    f"{sorted(examples)}. Give real inputs for it."
                )


def _inputs(function: Any, given: Mapping[str, np.ndarray], batch: int) -> dict[str, np.ndarray]:
    inputs = {}
    for spec in input_specs(function).values():
        value = given.get(spec.name)
        value = np.zeros([batch]) if value is None else value
        inputs[spec.name] = np.asarray(value, spec.dtype.as_numpy_dtype)
    return inputs


def _call(function: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    outputs = function(**{name: tf.constant(value) for name, value in inputs.items()})
    return {name: value.numpy() for name, value in outputs.items()}


def _rows(value: np.ndarray, batch: int) -> np.ndarray:
    return np.take(value, np.arange(batch) % len(value), axis=0)
