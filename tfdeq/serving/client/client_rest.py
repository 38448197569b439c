"""Sends requests to TensorFlow Serving by REST."""

import base64
import collections
import contextlib
import http.client
import json
import ssl
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2

from tfdeq.serving.client import client_access, client_calls, client_socket
from tfdeq.serving.client.client_access import Access
from tfdeq.serving.client.client_calls import NotNow, ServerError
from tfdeq.serving.client.client_values import ServedSignature, VersionStatus

# A server, or a proxy in front of it, that starts, stops or has a full queue.
_RETRIED = (429, 502, 503, 504)
_CHUNK_BYTES = 2**16
# More than the measured times for JSON: to write a number; to read a list, and a byte of anything
# else.
_WRITE_NUMBER_SECONDS = 3e-6
_READ_LIST_SECONDS = 4e-6
_READ_BYTE_SECONDS = 1e-7
_CHECK = "See whether the server runs there and whether that is its REST port (8501 by default)."
_WRONG_PORT = (
    "Something other than TensorFlow Serving's REST answers there, such as a proxy: name the REST "
    "port (8501 by default), or leave out rest=True (--rest) for gRPC."
)
_ADVICE = {
    400: "Correct the request as it says.",
    404: "Correct the model's name, version or signature, or load that version.",
    413: "Ask with a smaller batch.",
    401: client_access.REFUSED,
    403: client_access.REFUSED,
}


class RestTransport:
    """A model on a server, by REST; see `export.client.Client`. Threads may share it."""

    def __init__(
        self, access: Access, model_name: str, version: int | str | None, max_answer_bytes: int
    ):
        address, self._access = access.address, access
        self._context = access.context() if access.tls else None
        parts = urllib.parse.urlsplit(f"http://{address}")
        usual = http.client.HTTPS_PORT if access.tls else http.client.HTTP_PORT
        try:
            self._at = parts.hostname, parts.port or usual
        except ValueError:
            self._at = None, 0
        if self._at[0] is None:
            raise ValueError(f"address must be host:port; received {address!r}.")
        name = urllib.parse.quote(model_name, safe="")
        at = "" if version is None else f"/versions/{version}"
        if isinstance(version, str):
            at = f"/labels/{urllib.parse.quote(version, safe='')}"
        self._path = f"{parts.path.rstrip('/')}/v1/models/{name}{at}"
        self._limit = max_answer_bytes
        self._headers = {"Content-Type": "application/json"}
        self._idle: collections.deque[http.client.HTTPConnection] = collections.deque()
        if not access.tls:
            self._ask_a_proxy(parts.netloc)

    def _ask_a_proxy(self, netloc: str) -> None:
        """Uses the environment variables http_proxy and no_proxy."""
        proxy = urllib.request.getproxies().get("http")
        if not proxy or urllib.request.proxy_bypass(netloc):
            return
        parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"http://{proxy}")
        self._at = parts.hostname, parts.port or http.client.HTTP_PORT
        self._path = f"http://{netloc}{self._path}"
        if parts.username is not None:
            user = urllib.parse.unquote(f"{parts.username}:{parts.password or ''}")
            self._headers["Proxy-Authorization"] = (
                f"Basic {base64.b64encode(user.encode()).decode()}"
            )

    def status(self, deadline: float) -> list[VersionStatus]:
        """Returns the states of the model's versions."""
        answer = self._exchange("GET", self._path, None, deadline)
        try:
            return [
                VersionStatus(
                    int(each["version"]),
                    str(each["state"]),
                    str(each.get("status", {}).get("error_message", "")),
                )
                for each in answer["model_version_status"]
            ]
        except Exception as error:  # any error that unexpected JSON causes
            raise ServerError(_unreadable("status", f"{type(error).__name__}: {error}")) from error

    def signatures(self, deadline: float) -> get_model_metadata_pb2.SignatureDefMap:
        """Returns the model's signatures, from the server's metadata."""
        answer = self._exchange("GET", f"{self._path}/metadata", None, deadline)
        try:
            return json_format.ParseDict(
                answer["metadata"]["signature_def"],
                get_model_metadata_pb2.SignatureDefMap(),
                ignore_unknown_fields=True,
            )
        except Exception as error:  # any error that unexpected JSON causes
            raise ServerError(
                _unreadable("metadata", f"{type(error).__name__}: {error}")
            ) from error

    def predict(
        self,
        values: Mapping[str, np.ndarray],
        signature: str,
        served: ServedSignature,
        deadline: float,
    ) -> dict[str, np.ndarray]:
        """Returns the answer to one request, with numbers as read from JSON."""
        seconds = _WRITE_NUMBER_SECONDS * sum(value.size for value in values.values())
        client_calls.require_time(seconds, deadline, "writing the request as JSON")
        inputs = {name: _to_json(value) for name, value in values.items()}
        body = json.dumps({"signature_name": signature, "inputs": inputs}).encode()
        answer = self._exchange("POST", f"{self._path}:predict", body, deadline)
        outputs = answer.get("outputs") if isinstance(answer, Mapping) else None
        if not isinstance(outputs, Mapping) and len(served.outputs) == 1:
            outputs = dict.fromkeys(served.outputs, outputs)  # a single output has no name in JSON
        if not isinstance(outputs, Mapping):
            raise ServerError(_unreadable("answer", f"no outputs by name in {answer!r:.200}"))
        try:
            return {name: _from_json(value) for name, value in outputs.items()}
        except ValueError as error:
            raise ServerError(_unreadable("answer", error)) from error

    def close(self) -> None:
        """Closes the connections."""
        while self._idle:
            self._idle.pop().close()

    def _exchange(self, method: str, path: str, body: bytes | None, deadline: float) -> Any:
        """Returns the JSON answer to one request."""
        headers = self._access.headers()
        doing = f"connecting to {self._at[0]}:{self._at[1]}"
        connection, kept = None, False
        try:
            connection = self._connection(deadline)
            doing = "sending the request"
            # A server may close the connection before it has read everything, and still have
            # answered.
            with contextlib.suppress(ConnectionError):
                connection.request(method, path, body, {**self._headers, **headers})
            doing = "waiting for the answer's header"
            response = connection.getresponse()
            doing = "reading the answer"
            content = self._read(response)
            kept = not response.will_close
        except ServerError:  # also an OSError
            raise
        except TimeoutError as error:
            raise client_calls.out_of_time(doing) from error
        except ssl.SSLCertVerificationError as error:
            raise ServerError(
                f"No answer from the server: {error.verify_message}. {client_access.NOT_TRUSTED}"
            ) from error
        except ssl.SSLEOFError as error:
            raise NotNow(f"the connection failed while {doing}: {error}", _CHECK) from error
        except ssl.SSLError as error:
            raise ServerError(f"No answer: {error}. {client_access.NO_TLS}") from error
        except (ConnectionError, http.client.IncompleteRead) as error:
            raise NotNow(f"the connection failed while {doing}: {error}", _CHECK) from error
        except http.client.HTTPException as error:
            problem = f"{type(error).__name__}: {str(error)[:200]!r}"
            raise ServerError(
                f"The server's answer is no HTTP ({problem}). {_WRONG_PORT}"
            ) from error
        except OSError as error:
            raise NotNow(f"no connection: {error}", _CHECK) from error
        finally:
            if kept:
                self._idle.append(connection)
            elif connection is not None:
                connection.close()
        return self._json(response, content, deadline)

    def _connection(self, deadline: float) -> http.client.HTTPConnection:
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread took it
                break
            if connection.sock is not None and connection.sock.is_quiet():
                connection.sock.deadline = deadline
                return connection
            connection.close()
        connection = http.client.HTTPConnection(*self._at)
        connection.sock = client_socket.connect(*self._at, deadline)
        if self._context is not None:
            connection.sock = client_socket.secured(connection.sock, self._context, self._at[0])
        return connection

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        content = bytearray()
        if (response.length or 0) > self._limit:
            raise ServerError(client_calls.ANSWER_TOO_LARGE.format(limit=self._limit))
        while chunk := response.read(_CHUNK_BYTES):
            content += chunk
            if len(content) > self._limit:
                raise ServerError(client_calls.ANSWER_TOO_LARGE.format(limit=self._limit))
        if response.length:
            raise http.client.IncompleteRead(bytes(content), response.length)
        return bytes(content)

    def _json(self, response: http.client.HTTPResponse, content: bytes, deadline: float) -> Any:
        status = response.status
        text = f"HTTP {status}: {_words(content)}"
        if status in _RETRIED:
            raise NotNow(text, _CHECK)
        if status != http.client.OK:
            to = response.headers.get("Location")
            advice = _ADVICE.get(status, "The server's log may say more.")
            raise ServerError(
                f"The server refused: {text}. "
                f"{f'It points to {to[:200]}; name that address.' if to else advice}"
            )
        lists = content.count(b"[") + content.count(b"{")
        seconds = _READ_LIST_SECONDS * lists + _READ_BYTE_SECONDS * len(content)
        client_calls.require_time(seconds, deadline, "reading the answer's JSON")
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ServerError(
                f"The server's answer is no JSON ({error}): {content[:200].decode(errors='replace')!r}. "
                f"{_WRONG_PORT}"
            ) from error


def _words(content: bytes) -> str:
    """Returns the message in an error's body."""
    text = content[: 4 * client_calls.LONGEST_QUOTE].decode(errors="replace")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = text
    if isinstance(found, Mapping) and isinstance(found.get("error"), str):
        found = found["error"]
    return str(found).strip()[: client_calls.LONGEST_QUOTE] or "without a word"


def _to_json(value: np.ndarray) -> Any:
    if value.dtype == object:
        encoded = np.empty([value.size], object)
        encoded[:] = [{"b64": base64.b64encode(item).decode()} for item in value.ravel()]
        return encoded.reshape(value.shape).tolist()
    if value.dtype.kind == "V":  # bfloat16
        value = value.astype(np.float32)
    return value.tolist()


def _from_json(value: Any) -> np.ndarray:
    """Returns lists from JSON as an array; raises ValueError if they are not one."""
    found = np.asarray(value)
    if found.dtype == object:
        found = found.copy()
        for index, item in np.ndenumerate(found):
            if isinstance(item, Mapping) and isinstance(item.get("b64"), str):
                found[index] = base64.b64decode(item["b64"])
    return found


def _unreadable(what: str, problem: Any) -> str:
    return f"The server's {what} cannot be read: {str(problem)[:500]}. {_WRONG_PORT}"
