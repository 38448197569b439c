"""A client of TensorFlow Serving, by gRPC or REST, with a deadline, retries and a tolerance."""

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfdeq.serving.client import client_calls
from tfdeq.serving.client.client_calls import NotNow, ServerError
from tfdeq.serving.client.client_grpc import GrpcTransport
from tfdeq.serving.client.client_rest import RestTransport
from tfdeq.serving.client.client_values import (
    ServedSignature,
    answer_values,
    batch_size,
    request_values,
)

MAX_ANSWER_BYTES = 256 * 2**20  # many answers exceed gRPC's own default of 4 MiB


class Client:
    """A model on a server. Threads may share it.

    Args:
        address: host:port; 8500 is the server's gRPC port, 8501 its REST port.
        model_name: name of the model in the server's configuration.
        rest: whether to use REST instead of gRPC. Default False.
        version: the version to use; None: the newest.
        timeout: seconds for a whole call, including all attempts, connections, pauses and the reading
            of the answer. Default 10.
        attempts: largest number of attempts, with growing pauses, if retries may help: for a server
            that is away, starts, stops or is full. None, the default: as many as the time allows.
        max_answer_bytes: the largest answer to read, in bytes. Default 256 MiB.

    Raises:
        ValueError: for a setting out of range, or, with REST, an address that is not host:port.

    Example:
        client = Client("localhost:8500", "language_model")
        answer = client.predict({"tokens": tokens, "lengths": lengths}, tolerance=1e-2)
    """

    def __init__(
        self,
        address: str,
        model_name: str,
        *,
        rest: bool = False,
        version: int | None = None,
        timeout: float = 10.0,
        attempts: int | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ):
        if not 0 < timeout <= threading.TIMEOUT_MAX or (attempts is not None and attempts < 1):
            raise ValueError(
                "timeout must be > 0 seconds and attempts >= 1 or None; received "
                f"{timeout}, {attempts}."
            )
        # gRPC stores it in 32 bits.
        if not 0 < max_answer_bytes < 2**31:
            raise ValueError(
                f"max_answer_bytes must be between 1 and 2**31 - 1; received {max_answer_bytes}."
            )
        self._timeout, self._attempts = timeout, attempts
        self._server = f"server at {address} ({'REST' if rest else 'gRPC'}), model {model_name!r}"
        self._served: dict[str, ServedSignature] = {}
        self._closed = False
        kind = RestTransport if rest else GrpcTransport
        self._transport = kind(address, model_name, version, max_answer_bytes)

    def predict(
        self,
        inputs: Mapping[str, Any],
        signature: str = "serving_default",
        *,
        tolerance: float | np.ndarray | None = None,
        max_steps: int | np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns a signature's outputs by name.

        Numbers are sent in the signature's dtypes, which come from the server's metadata. These are
        read once for each signature, and again when a request is refused.

        Args:
            inputs: name of an input -> array or list, [B, ...], B >= 1.
            signature: name of the signature.
            tolerance, max_steps: for all examples or [B]; 0: the model's own. None: those in the
                inputs, else the model's own.

        Raises:
            ServerError: if there is no answer in time, a refusal, or an answer that cannot be read.
            TypeError: if inputs is not a dict.
            ValueError: for inputs that the signature does not take, or whose shapes, batches or values
                do not fit it, such as integers beyond its dtype. Nothing was computed then.
        """
        if self._closed:
            raise ValueError("This client is closed. Make another one.")
        if not isinstance(inputs, Mapping):
            raise TypeError(f"inputs must map names to arrays; received {type(inputs).__name__}.")
        given = {name: _as_input(value, name) for name, value in inputs.items()}
        batch_size(given)
        settings = {"tolerance": tolerance, "max_steps": max_steps}

        def attempt(deadline: float) -> dict[str, np.ndarray]:
            known = self._served.get(signature)
            try:
                return self._asked(given, signature, settings, deadline)
            except (ServerError, ValueError):
                # The server may now have another version with another signature.
                if known is None or not self._has_changed(signature, deadline):
                    raise
            return self._asked(given, signature, settings, deadline)

        return client_calls.ask(attempt, self._server, self._timeout, self._attempts)

    def close(self) -> None:
        """Closes the connection; the client cannot be used afterwards."""
        self._closed = True
        self._transport.close()

    def _asked(
        self,
        given: Mapping[str, np.ndarray],
        signature: str,
        settings: Mapping[str, Any],
        deadline: float,
    ) -> dict[str, np.ndarray]:
        served = self._served.get(signature) or self._read_signature(signature, deadline)
        values = request_values(given, served, settings)
        found = self._transport.predict(values, signature, served, deadline)
        return answer_values(found, served, batch_size(values))

    def _read_signature(self, signature: str, deadline: float) -> ServedSignature:
        served = self._transport.signature(signature, deadline)
        self._served[signature] = served
        return served

    def _has_changed(self, signature: str, deadline: float) -> bool:
        known = self._served.pop(signature, None)
        try:
            return self._read_signature(signature, deadline) != known
        except (ServerError, NotNow):
            return False  # the earlier error is more helpful


def _as_input(value: Any, name: str = "inputs") -> np.ndarray:
    """Returns an array with the given values unchanged; the signature's dtype is not known here."""
    try:
        array = np.asarray(value)
        text = array.dtype.kind in "SU" and not isinstance(value, np.ndarray)
    except UnicodeDecodeError:  # text and bytes together
        text = True
    except ValueError as error:
        raise ValueError(
            f"The input {name!r} must be an array or nested lists of one length at each depth: {error}"
        ) from error
    # NumPy's own text dtype would lose a trailing 0 byte, and turn numbers next to text into text.
    return np.asarray(value, object) if text else array


def encode_text(text: str, vocabulary: list[str] | None) -> np.ndarray:
    """Returns token ids: bytes, or words of a vocabulary.

    Raises:
        ValueError: for an empty text, or a word that is not in a vocabulary without <unk>.
    """
    if not text.strip():
        raise ValueError("--text must hold at least one character that is no space.")
    if vocabulary is None:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    ids = {word: index for index, word in enumerate(vocabulary)}
    unknown = ids.get("<unk>")
    missing = [word for word in text.split() if word not in ids]
    if missing and unknown is None:
        raise ValueError(f"Words that the vocabulary lacks: {', '.join(missing)}.")
    return np.array([ids.get(word, unknown) for word in text.split()], np.int32)


def decode_text(tokens: np.ndarray, vocabulary: list[str] | None) -> str:
    """Returns the text of token ids.

    Raises:
        ValueError: for an id that is not a byte or not in the vocabulary.
    """
    size = 256 if vocabulary is None else len(vocabulary)
    beyond = [int(token) for token in tokens if not 0 <= token < size]
    if beyond:
        last = "a byte" if vocabulary is None else "the last line of --vocabulary"
        raise ValueError(
            f"The answer has the token {beyond[0]}, and {last} is {size - 1}. Name the model's "
            "--vocabulary: assets.extra/vocabulary.txt of its version."
        )
    if vocabulary is None:
        return bytes(tokens.astype(np.uint8)).decode(errors="replace")
    return " " + " ".join(vocabulary[token] for token in tokens)
