"""A client of TensorFlow Serving, by gRPC or REST, with a deadline, retries and a tolerance."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from tfdeq.serving.client import client_calls, client_text
from tfdeq.serving.client.client_access import Access
from tfdeq.serving.client.client_calls import NotNow, ServerError
from tfdeq.serving.client.client_grpc import GrpcTransport
from tfdeq.serving.client.client_rest import RestTransport
from tfdeq.serving.client.client_text import Segment
from tfdeq.serving.client.client_values import (
    ServedSignature,
    VersionStatus,
    answer_values,
    batch_size,
    joined,
    request_values,
    rows_of,
    served_signature,
)

T = TypeVar("T")
_SAMPLING = {
    "max_new_tokens": 0,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 0.0,
    "seed": 0,
    "stop_token": -1,
}
MAX_ANSWER_BYTES = 256 * 2**20  # many answers exceed gRPC's own default of 4 MiB


class Client:
    """A model on a server. Threads may share it.

    Args:
        address: host:port; 8500 is the server's gRPC port, 8501 its REST port. With https:// in front, the
            connection is encrypted by TLS.
        model_name: name of the model in the server's configuration.
        rest: whether to use REST instead of gRPC. Default False.
        version: the version to use: its number, or a label of the server's configuration, such as
            "stable"; None: the newest.
        timeout: seconds for a whole call, including all attempts, connections, pauses and the reading
            of the answer. Default 10.
        attempts: largest number of attempts, with growing pauses, if retries may help: for a server
            that is away, starts, stops or is full. None, the default: as many as the time allows.
        max_answer_bytes: the largest answer to read, in bytes. Default 256 MiB.
        max_batch_size: the most examples of one request: `predict` sends a larger batch in parts, one after
            another, and joins the answers. None, the default: every batch in one request.
        headers: name -> value, sent with every request, such as those that a proxy asks for.
        token: sent as `Authorization: Bearer TOKEN`, which needs TLS except on this machine; or a function
            without arguments that returns it, called for each request.
        certificate_authority: PEM file of the authorities whose servers to trust, with TLS; None: those of
            the system.
        client_certificate: PEM file of this client's certificate and key, or the pair of files (certificate,
            key), with TLS.

    Raises:
        ValueError: for a setting out of range, or, with REST, an address that is not host:port; for headers
            that cannot be sent, and a token that would be sent without TLS.
        OSError: for a file of certificates that cannot be read.

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
        version: int | str | None = None,
        timeout: float = 10.0,
        attempts: int | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        max_batch_size: int | None = None,
        headers: Mapping[str, str] | None = None,
        token: str | Callable[[], str] | None = None,
        certificate_authority: str | os.PathLike | None = None,
        client_certificate: str | os.PathLike | tuple[Any, Any] | None = None,
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
        if max_batch_size is not None and max_batch_size < 1:
            raise ValueError(f"max_batch_size must be >= 1 or None; received {max_batch_size}.")
        self._timeout, self._attempts = timeout, attempts
        self._max_batch_size = max_batch_size
        self._server = f"server at {address} ({'REST' if rest else 'gRPC'}), model {model_name!r}"
        self._served: dict[str, ServedSignature] = {}
        self._closed = False
        access = Access(
            address,
            headers=headers,
            token=token,
            certificate_authority=certificate_authority,
            client_certificate=client_certificate,
        )
        kind = RestTransport if rest else GrpcTransport
        self._transport = kind(access, model_name, version, max_answer_bytes)

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

        A batch above `max_batch_size` is sent in parts. The timeout is for all of them; an error names the
        examples of the part that has no answer.

        Raises:
            ServerError: if there is no answer in time, a refusal, or an answer that cannot be read.
            TypeError: if inputs is not a dict.
            ValueError: for inputs that the signature does not take, or whose shapes, batches or values
                do not fit it, such as integers beyond its dtype. Nothing was computed then.
        """
        return self._answer(
            inputs, signature, {"tolerance": tolerance, "max_steps": max_steps}, self._timeout
        )

    def status(self) -> list[VersionStatus]:
        """Returns the states of the model's versions on the server, in the server's order.

        A version answers requests while its `state` is "AVAILABLE".

        Raises:
            ServerError: if there is no answer in time, or the server has no such model.
        """
        return self._ask_transport(lambda deadline: self._transport.status(deadline))

    def signatures(self) -> dict[str, ServedSignature]:
        """Returns the model's signatures: name -> inputs and outputs, name -> dtype and shape.

        Raises:
            ServerError: if there is no answer in time, or the server has no such model.
        """
        found = self._ask_transport(lambda deadline: self._transport.signatures(deadline))
        return {name: served_signature(found, name) for name in sorted(found.signature_def)}

    def generate(self, prompt: str | Any, **settings: Any) -> Segment:
        """Returns a language model's continuation of a text.

        It asks for the tokens in segments, so that a long text does not make the short ones of other
        clients wait. The tokens are those of the signature `generate`, exactly.

        Args:
            prompt, settings: as of `segments`. The client's `timeout` is for all segments together.

        Returns:
            The new tokens: text, tokens [N] int32, finish, residual, steps, prompt_steps, status.

        Raises:
            ServerError, ValueError: as of `segments`.

        Example:
            print(client.generate("import numpy as ", max_new_tokens=40).text)
        """
        deadline = time.monotonic() + self._timeout
        return client_text.together(list(self._segments(prompt, deadline, **settings)))

    def stream(self, prompt: str | Any, **settings: Any) -> Iterator[str]:
        """Yields a language model's continuation of a text as it comes; see `segments`.

        All texts together are the one that `generate` returns.

        Example:
            for text in client.stream("import numpy as ", max_new_tokens=40):
                print(text, end="", flush=True)
        """
        parts = self.segments(prompt, **settings)
        return (part.text for part in parts if part.text)

    def segments(self, prompt: str | Any, **settings: Any) -> Iterator[Segment]:
        """Yields a language model's continuation of a text in segments, one call of the server for each.

        The first call reads the prompt. Each further one sends the text and the state of the model, which
        the last one returned, so any server with this version can answer it. Name the client's `version` if
        another version may be loaded meanwhile. A model that was exported without segments answers in one.

        Args:
            prompt: a text, or token ids [T].
            settings: `max_new_tokens` (0, the default: as many as the model has room for), `temperature`
                (0, the default: the most likely token, always), `top_k`, `top_p`, `seed`, `stop_token`
                (-1: none), `tolerance`, `max_steps`, each one number, as the signature `generate` takes
                them; `vocabulary`, the words of a model of words in the order of ids (None: bytes);
                `first_tokens` and `segment_tokens`, the tokens of the first call (default 1) and of the
                others (default 16).

        Raises:
            ServerError: as `predict`; the client's `timeout` is for each segment.
            ValueError: for a prompt without a token, or one that the model cannot read.
            TypeError: for an unknown setting.
        """
        return self._segments(prompt, None, **settings)

    def _segments(
        self,
        prompt: str | Any,
        deadline: float | None,
        *,
        tolerance: float | None = None,
        max_steps: int | None = None,
        vocabulary: list[str] | None = None,
        first_tokens: int = 1,
        segment_tokens: int = 16,
        **sampling: Any,
    ) -> Iterator[Segment]:
        unknown = sorted(set(sampling) - set(_SAMPLING))
        if unknown:
            known = "tolerance, max_steps, vocabulary, first_tokens, segment_tokens"
            raise TypeError(
                f"Unknown settings: {', '.join(unknown)}. Known ones: {', '.join(_SAMPLING)}, {known}."
            )
        if first_tokens < 1 or segment_tokens < 1:
            raise ValueError(
                "first_tokens and segment_tokens must be >= 1; received "
                f"{first_tokens}, {segment_tokens}."
            )
        solving = {"tolerance": tolerance, "max_steps": max_steps}

        def predict(inputs: Mapping[str, Any], signature: str) -> dict[str, np.ndarray]:
            left = self._timeout if deadline is None else deadline - time.monotonic()
            return self._answer(inputs, signature, solving, max(left, 0.0))

        return client_text.segments(
            predict, prompt, vocabulary, first_tokens, segment_tokens, {**_SAMPLING, **sampling}
        )

    def close(self) -> None:
        """Closes the connection; the client cannot be used afterwards."""
        self._closed = True
        self._transport.close()

    def _ask_transport(self, attempt: Callable[[float], T]) -> T:
        if self._closed:
            raise ValueError("This client is closed. Make another one.")
        return client_calls.ask(attempt, self._server, self._timeout, self._attempts)

    def _answer(
        self, inputs: Mapping[str, Any], signature: str, settings: Mapping[str, Any], timeout: float
    ) -> dict[str, np.ndarray]:
        if self._closed:
            raise ValueError("This client is closed. Make another one.")
        if not isinstance(inputs, Mapping):
            raise TypeError(f"inputs must map names to arrays; received {type(inputs).__name__}.")
        given = {name: _as_input(value, name) for name, value in inputs.items()}
        batch, most = batch_size(given), self._max_batch_size
        if most is None or batch <= most:
            return self._ask(given, signature, settings, timeout)
        deadline = time.monotonic() + timeout
        parts = []
        for start in range(0, batch, most):
            rows = slice(start, min(start + most, batch))
            try:
                part = {name: value[rows] for name, value in given.items()}
                left = max(deadline - time.monotonic(), 0.0)
                parts.append(self._ask(part, signature, rows_of(settings, rows, batch), left))
            except (ServerError, ValueError) as error:
                where = f"Examples {start} to {rows.stop - 1} of {batch}"
                raise type(error)(f"{where}: {error}") from error
        return joined(parts)

    def _ask(
        self,
        given: Mapping[str, np.ndarray],
        signature: str,
        settings: Mapping[str, Any],
        timeout: float,
    ) -> dict[str, np.ndarray]:
        def attempt(deadline: float) -> dict[str, np.ndarray]:
            known = self._served.get(signature)
            try:
                return self._asked(given, signature, settings, deadline)
            except (ServerError, ValueError):
                # The server may now have another version with another signature.
                if known is None or not self._has_changed(signature, deadline):
                    raise
            return self._asked(given, signature, settings, deadline)

        return client_calls.ask(attempt, self._server, timeout, self._attempts)

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
        served = served_signature(self._transport.signatures(deadline), signature)
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
