"""Sends requests to TensorFlow Serving by gRPC."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tfdeq.serving.client import client_access, client_calls
from tfdeq.serving.client.client_access import Access
from tfdeq.serving.client.client_calls import NotNow, ServerError
from tfdeq.serving.client.client_values import ServedSignature, VersionStatus

_Code = grpc.StatusCode
# A server that starts, stops or has a full queue; retries do not help with other errors.
_RETRIED = (
    _Code.UNAVAILABLE,
    _Code.RESOURCE_EXHAUSTED,
    _Code.ABORTED,
    _Code.CANCELLED,
    _Code.DEADLINE_EXCEEDED,
)
_RECONNECT_MILLISECONDS = 100
# Slower than the measured rate for numbers in repeated fields: 18 MB/s for small integers.
_READ_BYTES_PER_SECOND = 1e7
_CHECK = "See whether the server runs there and whether that is its gRPC port (8500 by default)."
_WRONG_PORT = (
    "Something other than a gRPC server answers there: name its gRPC port (8500 by default), or use "
    "REST (rest=True, --rest)."
)
_ADVICE = {
    _Code.NOT_FOUND: "Correct the model's name, version or signature, or load that version.",
    _Code.INVALID_ARGUMENT: "Correct the request as it says.",
    _Code.UNIMPLEMENTED: _WRONG_PORT,
    _Code.UNAUTHENTICATED: client_access.REFUSED,
    _Code.PERMISSION_DENIED: client_access.REFUSED,
    _Code.UNKNOWN: f"The server's log may say more. If it has none: {_WRONG_PORT}",
}


class GrpcTransport:
    """A model on a server, by gRPC; see `export.client.Client`."""

    def __init__(
        self, access: Access, model_name: str, version: int | str | None, max_answer_bytes: int
    ):
        options = [
            ("grpc.max_receive_message_length", max_answer_bytes),
            ("grpc.max_send_message_length", -1),  # the server has its own limit
            # By default, gRPC waits a second before it tries a lost connection again.
            ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MILLISECONDS),
            ("grpc.max_reconnect_backoff_ms", 10 * _RECONNECT_MILLISECONDS),
        ]
        self._name, self._version, self._limit = model_name, version, max_answer_bytes
        self._access = access
        if access.tls:
            self._channel = grpc.secure_channel(access.address, access.credentials(), options)
        else:
            self._channel = grpc.insecure_channel(access.address, options)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def status(self, deadline: float) -> list[VersionStatus]:
        """Returns the states of the model's versions."""
        request = get_model_status_pb2.GetModelStatusRequest()
        self._name_model(request.model_spec)
        answer = self._call(self._models.GetModelStatus, request, deadline)
        states = get_model_status_pb2.ModelVersionStatus.State
        return [
            VersionStatus(each.version, states.Name(each.state), each.status.error_message)
            for each in answer.model_version_status
        ]

    def signatures(self, deadline: float) -> get_model_metadata_pb2.SignatureDefMap:
        """Returns the model's signatures, from the server's metadata."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._name_model(request.model_spec)
        answer = self._call(self._stub.GetModelMetadata, request, deadline)
        found = get_model_metadata_pb2.SignatureDefMap()
        try:
            readable = answer.metadata["signature_def"].Unpack(found)
        except Exception as error:  # protobuf's implementations raise different errors
            raise ServerError(_unreadable("metadata", error)) from error
        if not readable:
            raise ServerError(_unreadable("metadata", "no signatures in it"))
        return found

    def predict(
        self,
        values: Mapping[str, np.ndarray],
        signature: str,
        served: ServedSignature,
        deadline: float,
    ) -> dict[str, np.ndarray]:
        """Returns the answer to one request, with the signature's dtypes."""
        request = predict_pb2.PredictRequest()
        self._name_model(request.model_spec)
        request.model_spec.signature_name = signature
        for name, value in values.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        answer = self._call(self._stub.Predict, request, deadline)
        packed = sum(len(tensor.tensor_content) for tensor in answer.outputs.values())
        seconds = (answer.ByteSize() - packed) / _READ_BYTES_PER_SECOND
        client_calls.require_time(seconds, deadline, "reading the answer")
        found = {name: self._array(tensor) for name, tensor in answer.outputs.items()}
        for name, value in found.items():
            expected = served.outputs[name].dtype if name in served.outputs else None
            if expected is not None and expected.as_numpy_dtype != value.dtype:
                raise ServerError(
                    _unreadable("answer", f"{name!r} is {value.dtype}, not {expected.name}")
                )
        return found

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def _name_model(self, spec: Any) -> None:
        spec.name = self._name
        if isinstance(self._version, str):
            spec.version_label = self._version
        elif self._version is not None:
            spec.version.value = self._version

    def _call(self, method: Callable[..., Any], request: Any, deadline: float) -> Any:
        left = deadline - time.monotonic()
        if left <= 0:
            raise client_calls.out_of_time("preparing the request")
        try:
            return method(request, timeout=left, metadata=tuple(self._access.headers().items()))
        except grpc.RpcError as error:
            raise self._failure(error) from error

    def _failure(self, error: Any) -> Exception:
        code, details = error.code(), str(error.details())[: client_calls.LONGEST_QUOTE]
        text = f"{code.name}: {details}"
        if code is _Code.RESOURCE_EXHAUSTED and "larger than max" in details:
            # The messages about either side's limit; in older versions they do not say whose limit
            # it is.
            own = ("CLIENT", "Decompressed", f"vs. {self._limit})")
            if any(word in details for word in own):
                limit = client_calls.ANSWER_TOO_LARGE.format(limit=self._limit)
                return ServerError(f"{limit} ({details})")
            return ServerError(f"The server refused: {text}. Ask with a smaller batch.")
        if "http1.x server" in details and not any(
            f"status {status})" in details for status in (429, 502, 503, 504)
        ):
            return ServerError(f"The server refused: {text}. {_WRONG_PORT}")
        if "CERTIFICATE_VERIFY_FAILED" in details or "Hostname Verification" in details:
            return ServerError(f"No answer: {text}. {client_access.NOT_TRUSTED}")
        if "WRONG_VERSION_NUMBER" in details or "TLS_ALERT" in details or "TLSV1" in details:
            return ServerError(f"No answer: {text}. {client_access.NO_TLS}")
        if code is _Code.DEADLINE_EXCEEDED:
            return NotNow(text, client_calls.TAKE_LONGER)
        if code in _RETRIED:
            return NotNow(text, _CHECK)
        advice = _ADVICE.get(code, "The server's log may say more.")
        return ServerError(f"The server refused: {text}. {advice}")

    def _array(self, tensor: Any) -> np.ndarray:
        try:
            dtype = tf.as_dtype(tensor.dtype)
            sizes = [dimension.size for dimension in tensor.tensor_shape.dim]
            # A single number may stand for all entries of a tensor.
            size = math.prod(sizes) * (1 if dtype == tf.string else dtype.size)
            if size > self._limit or min(sizes, default=0) < 0:
                raise ValueError(f"a tensor of the shape {sizes} and {size:,} bytes")
            return tf.make_ndarray(tensor)
        except Exception as error:  # any error that NumPy raises for an invalid tensor
            raise ServerError(_unreadable("answer", error)) from error


def _unreadable(what: str, problem: Any) -> str:
    return (
        f"The server's {what} cannot be read: {str(problem)[:500]}. See which server answers at that "
        "address, and whether it is TensorFlow Serving."
    )
