"""Asks a TensorFlow Serving server, by gRPC or REST, with a deadline, retries and a tolerance.

python -m export.client --model_name=language_model --text='import numpy as' --max_new_tokens=40
"""

import json
import pathlib
import sys
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from export import client_calls
from export.client_calls import NotNow, ServerError
from export.client_grpc import GrpcTransport
from export.client_rest import RestTransport
from export.client_values import ServedSignature, answer_values, batch_size, request_values
from tfdeq import Status, describe
from trainers import program

FLAGS = flags.FLAGS
MAX_ANSWER_BYTES = 256 * 2**20  # gRPC's own default, 4 MiB, is less than many an answer


class Client:
    """A model on a server. Threads may share it.

    Args:
        address: host:port; 8500 is the server's gRPC port, 8501 its REST port.
        model_name: as the server's configuration names it.
        rest: use REST, else gRPC. Default False.
        version: ask this one; None: the newest.
        timeout: seconds for a whole call: all attempts, connections and pauses, and the reading of
            the answer. Default 10.
        attempts: how often to ask at most, with growing pauses, where asking again may help: a server
            that is away, starts, stops or is full. None, the default: as often as the time allows.
        max_answer_bytes: the largest answer to read, in bytes. Default 256 MiB.

    Raises:
        ValueError: a setting out of its range, or for REST an address that is not host:port.

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
        # gRPC has 32 bits for it.
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

        Numbers are sent in the dtypes that the signature takes, which the server's metadata name;
        they are read once for each signature, and again when a request is refused.

        Args:
            inputs: the model's names of its inputs -> arrays, or lists, [B, ...], B >= 1.
            signature: its name.
            tolerance, max_steps: for all examples or [B]; 0: the model's own. None: what the inputs
                name, else the model's own.

        Raises:
            ServerError: no answer in time, a refusal, or an answer that cannot be read.
            TypeError: inputs that are no dict.
            ValueError: nothing was computed: inputs that the signature does not take, or whose
                shapes, batches or values do not fit it, such as integers beyond its dtype.
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
                # The server may have another version by now, with another signature.
                if known is None or not self._has_changed(signature, deadline):
                    raise
            return self._asked(given, signature, settings, deadline)

        return client_calls.ask(attempt, self._server, self._timeout, self._attempts)

    def close(self) -> None:
        """Closes the connection; the client cannot be used any more."""
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
            return False  # what failed before says more


def _as_input(value: Any, name: str = "inputs") -> np.ndarray:
    """An array that holds the values as they are; the signature's dtype is not known here."""
    try:
        array = np.asarray(value)
        text = array.dtype.kind in "SU" and not isinstance(value, np.ndarray)
    except UnicodeDecodeError:  # text beside bytes
        text = True
    except ValueError as error:
        raise ValueError(
            f"The input {name!r} must be an array or nested lists of one length at each depth: {error}"
        ) from error
    # NumPy's own text would lose a last byte of 0, and write numbers out beside text.
    return np.asarray(value, object) if text else array


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
    """Returns the text of token ids.

    Raises:
        ValueError: an id that is no byte, or that the vocabulary lacks.
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


def main() -> None:
    client = Client(
        FLAGS.address,
        FLAGS.model_name,
        rest=FLAGS.rest,
        timeout=FLAGS.timeout,
        attempts=FLAGS.attempts,
        max_answer_bytes=FLAGS.max_answer_bytes,
    )
    settings = {"tolerance": FLAGS.tolerance or None, "max_steps": FLAGS.max_steps or None}
    if FLAGS.inputs is not None:
        answer = client.predict(_read_inputs(FLAGS.inputs), FLAGS.signature, **settings)
        found = {name: value.tolist() for name, value in answer.items()}
        print(json.dumps(found, default=lambda text: text.decode(errors="replace")))
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


def _read_inputs(path: str) -> dict[str, Any]:
    try:
        inputs = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"--inputs={path} is no JSON: {error}. Write {{input: [rows]}}."
        ) from error
    if not isinstance(inputs, dict):
        raise ValueError(f"--inputs={path} must hold {{input: [rows]}}; received {inputs!r:.100}.")
    return inputs


def define_flags() -> None:
    flags.DEFINE_string("address", "localhost:8500", "host:port; 8501 with --rest.")
    flags.DEFINE_bool("rest", False, "Use REST instead of gRPC.")
    flags.DEFINE_string("model_name", None, "As the server's configuration names the model.")
    flags.DEFINE_float("timeout", 10.0, "Seconds for the whole call, all attempts together.", 1e-3)
    flags.DEFINE_integer(
        "attempts", None, "How often to ask at most. Default: as often as --timeout allows.", 1
    )
    flags.DEFINE_integer(
        "max_answer_bytes", MAX_ANSWER_BYTES, "The largest answer to read.", 1, 2**31 - 1
    )
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
