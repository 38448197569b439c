"""Asks a TensorFlow Serving server, by gRPC or REST, with a deadline, retries and a tolerance.

python -m export.client --model_name=language_model --text='import numpy as' --max_new_tokens=40
"""

import json
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
import requests
import tensorflow as tf
from absl import flags
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tfdeq import Status, describe
from trainers import program

FLAGS = flags.FLAGS
_FIRST_PAUSE_SECONDS = 0.1
# A server that starts, stops or has a full queue; anything else will not get better by itself.
_RETRIED_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
_RETRIED_HTTP = (429, 502, 503, 504)
_RECONNECT_MILLISECONDS = 100
_LONGEST_MESSAGE = 256 * 2**20  # the default, 4 MiB, is less than many an answer


class ServerError(ChildProcessError):
    """The server refused, or did not answer in time; the message has its words."""


class Client:
    """A model on a server.

    Args:
        address: host:port; 8500 is the server's gRPC port, 8501 its REST port.
        model_name: as the server's configuration names it.
        rest: use REST, else gRPC. Default False.
        version: ask this one; None: the newest.
        timeout: seconds for an answer, all attempts together. Default 10.
        attempts: how often to ask a server that is unavailable, with growing pauses. Default 4.

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
        attempts: int = 4,
    ):
        if timeout <= 0 or attempts < 1:
            raise ValueError(
                f"timeout must be > 0 and attempts >= 1; received {timeout}, {attempts}."
            )
        self._name, self._version = model_name, version
        self._timeout, self._attempts = timeout, attempts
        self._dtypes: dict[str, dict[str, np.dtype]] = {}
        if rest:
            at = "" if version is None else f"/versions/{version}"
            self._url = f"http://{address}/v1/models/{model_name}{at}"
            self._session = requests.Session()
            self._ask = self._ask_rest
        else:
            options = [
                ("grpc.max_receive_message_length", _LONGEST_MESSAGE),
                ("grpc.max_send_message_length", _LONGEST_MESSAGE),
                # By default a lost connection is not tried again for a second.
                ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MILLISECONDS),
                ("grpc.min_reconnect_backoff_ms", _RECONNECT_MILLISECONDS),
                ("grpc.max_reconnect_backoff_ms", 10 * _RECONNECT_MILLISECONDS),
            ]
            self._channel = grpc.insecure_channel(address, options)
            self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
            self._ask = self._ask_grpc

    def predict(
        self,
        inputs: Mapping[str, Any],
        signature: str = "serving_default",
        *,
        tolerance: float | np.ndarray | None = None,
        max_steps: int | np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns a signature's outputs by name.

        Args:
            inputs: name -> array [B, ...], of the dtype that the model card names.
            signature: its name.
            tolerance, max_steps: for all examples or [B]; 0: the model's own. None: what the inputs
                name, else the model's own.

        Raises:
            ServerError: no answer in time, or a refusal.
        """
        given = {name: np.asarray(value) for name, value in inputs.items()}
        batch = len(next(iter(given.values())))
        settings = ("tolerance", tolerance, np.float32), ("max_steps", max_steps, np.int32)
        for name, value, dtype in settings:
            if value is not None or name not in given:
                given[name] = np.broadcast_to(
                    np.asarray(0 if value is None else value, dtype), [batch]
                )
        deadline = time.monotonic() + self._timeout
        pause = _FIRST_PAUSE_SECONDS
        for attempt in range(1, self._attempts + 1):
            left = max(deadline - time.monotonic(), 1e-3)
            answer, problem = self._ask(given, signature, left)
            if answer is not None:
                return answer
            if attempt == self._attempts or time.monotonic() + pause >= deadline:
                break
            time.sleep(pause)
            pause *= 2
        raise ServerError(
            f"No answer from the server after {attempt} attempts in {self._timeout} s: {problem}"
        )

    def close(self) -> None:
        """Closes the connection."""
        if hasattr(self, "_channel"):
            self._channel.close()
        else:
            self._session.close()

    def _ask_grpc(self, given, signature, seconds) -> tuple[dict[str, np.ndarray] | None, str]:
        """The answer, or None and why asking again may help."""
        request = predict_pb2.PredictRequest()
        request.model_spec.name = self._name
        request.model_spec.signature_name = signature
        if self._version is not None:
            request.model_spec.version.value = self._version
        for name, value in given.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        try:
            answer = self._stub.Predict(request, timeout=seconds)
        except grpc.RpcError as error:
            text = f"{error.code().name}: {error.details()}"
            if error.code() in _RETRIED_CODES:
                return None, text
            raise ServerError(f"The server refused: {text}") from error
        return {name: tf.make_ndarray(value) for name, value in answer.outputs.items()}, ""

    def _ask_rest(self, given, signature, seconds) -> tuple[dict[str, np.ndarray] | None, str]:
        """The answer, or None and why asking again may help."""
        body = {
            "signature_name": signature,
            "inputs": {name: value.tolist() for name, value in given.items()},
        }
        deadline = time.monotonic() + seconds
        try:
            metadata = None
            if signature not in self._dtypes:
                metadata = self._session.get(f"{self._url}/metadata", timeout=seconds)
                if metadata.status_code in _RETRIED_HTTP:
                    return None, f"HTTP {metadata.status_code}: {metadata.text[:500]}"
            left = max(deadline - time.monotonic(), 1e-3)
            answer = self._session.post(f"{self._url}:predict", json=body, timeout=left)
            if answer.status_code in _RETRIED_HTTP:
                return None, f"HTTP {answer.status_code}: {answer.text[:500]}"
            if answer.status_code != requests.codes.ok:
                raise ServerError(
                    f"The server refused: HTTP {answer.status_code}: {answer.text[:2000]}"
                )
            outputs = answer.json()["outputs"]
            if metadata is not None:
                self._dtypes[signature] = _output_dtypes(metadata.json(), signature)
        except requests.RequestException as error:
            return None, str(error)
        dtypes = self._dtypes[signature]
        return {name: np.asarray(value, dtypes.get(name)) for name, value in outputs.items()}, ""


def _output_dtypes(metadata: dict[str, Any], signature: str) -> dict[str, np.dtype]:
    """JSON has one kind of number; the server's metadata says which it was."""
    found = metadata["metadata"]["signature_def"]["signature_def"]
    outputs = found.get(signature, {}).get("outputs", {})
    return {
        name: np.dtype(_DTYPES[info["dtype"]])
        for name, info in outputs.items()
        if info["dtype"] in _DTYPES
    }


_DTYPES = {
    "DT_FLOAT": "float32",
    "DT_DOUBLE": "float64",
    "DT_INT32": "int32",
    "DT_INT64": "int64",
    "DT_BOOL": "bool",
}


def encode_text(text: str, vocabulary: list[str] | None) -> np.ndarray:
    """Returns token ids: bytes, or words of a vocabulary.

    Raises:
        ValueError: no text, or a word that the vocabulary lacks and that has no <unk> there.
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
    """Returns the text of token ids."""
    if vocabulary is None:
        return bytes(tokens.astype(np.uint8)).decode(errors="replace")
    return " " + " ".join(vocabulary[token] for token in tokens)


def main() -> None:
    client = Client(
        FLAGS.address,
        FLAGS.model_name,
        rest=FLAGS.rest,
        timeout=FLAGS.timeout,
        attempts=FLAGS.attempts,
    )
    settings = {"tolerance": FLAGS.tolerance or None, "max_steps": FLAGS.max_steps or None}
    if FLAGS.inputs is not None:
        given = json.loads(pathlib.Path(FLAGS.inputs).read_text(encoding="utf-8"))
        inputs = {name: _as_input(value) for name, value in given.items()}
        answer = client.predict(inputs, FLAGS.signature, **settings)
        print(json.dumps({name: value.tolist() for name, value in answer.items()}))
        return
    vocabulary = None
    if FLAGS.vocabulary is not None:
        vocabulary = pathlib.Path(FLAGS.vocabulary).read_text(encoding="utf-8").splitlines()
    tokens = encode_text(FLAGS.text, vocabulary)
    answer = client.predict(
        {
            "tokens": tokens[None],
            "lengths": np.array([len(tokens)], np.int32),
            "max_new_tokens": np.array([FLAGS.max_new_tokens], np.int32),
            "temperature": np.array([FLAGS.temperature], np.float32),
            "top_k": np.array([FLAGS.top_k], np.int32),
            "top_p": np.array([FLAGS.top_p], np.float32),
            "seed": np.array([FLAGS.seed], np.int32),
            "stop_token": np.array([-1], np.int32),
        },
        "generate",
        **settings,
    )
    if answer["status"][0] < 0:
        raise ValueError(
            "The server calls the example invalid: the text has more tokens than the model reads, or "
            "others than it knows. Shorten it, or name the model's --vocabulary."
        )
    new = answer["tokens"][0, : answer["lengths"][0]]
    print(FLAGS.text + decode_text(new, vocabulary))
    status = int(answer["status"][0])
    print(
        f"{len(new)} tokens, {answer['steps'][0]} steps ({answer['prompt_steps'][0]} of them for the "
        f"prompt), largest residual {answer['residual'][0]:.1e}, {Status(status).name}",
        file=sys.stderr,
    )
    if status:
        print(describe(status), file=sys.stderr)


def _as_input(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array.astype({"f": np.float32, "i": np.int32}.get(array.dtype.kind, array.dtype))


def define_flags() -> None:
    flags.DEFINE_string("address", "localhost:8500", "host:port; 8501 with --rest.")
    flags.DEFINE_bool("rest", False, "Use REST instead of gRPC.")
    flags.DEFINE_string("model_name", None, "As the server's configuration names the model.")
    flags.DEFINE_float("timeout", 10.0, "Seconds for an answer, all attempts together.", 1e-3)
    flags.DEFINE_integer("attempts", 4, "How often to ask an unavailable server.", 1)
    flags.DEFINE_float("tolerance", 0.0, "Relative residual to solve to; 0: the model's own.", 0.0)
    flags.DEFINE_integer("max_steps", 0, "Steps at most; 0: the model's own.", 0)
    flags.DEFINE_string("inputs", None, "JSON file {input: [rows]}; ask --signature, print JSON.")
    flags.DEFINE_string("signature", "serving_default", "With --inputs: which one.")
    flags.DEFINE_string("text", None, "A prompt for a language model's `generate`.")
    flags.DEFINE_string("vocabulary", None, "Words by id, for a model of words; else bytes.")
    flags.DEFINE_integer("max_new_tokens", 40, "Tokens to add at most.", 1)
    flags.DEFINE_float("temperature", 0.0, "0: the likeliest token, always.", 0.0)
    flags.DEFINE_integer("top_k", 0, "Draw from so many likeliest tokens; 0: all.", 0)
    flags.DEFINE_float("top_p", 0.0, "Draw from this much probability; 0: all.", 0.0, 1.0)
    flags.DEFINE_integer("seed", 0, "The same seed gives the same text.")
    flags.mark_flag_as_required("model_name")
    flags.register_multi_flags_validator(
        ["inputs", "text"],
        lambda values: (values["inputs"] is None) != (values["text"] is None),
        "give --text, or --inputs, and not both",
    )


def run() -> None:
    """Entry point of the console script."""
    define_flags()
    program.run(main)


if __name__ == "__main__":
    run()
