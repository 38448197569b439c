"""The flags of `export.client`, the client that they describe, and its inputs."""

import json
import pathlib
import sys
from typing import Any

from absl import flags

from tfdeq.serving.client.model_client import MAX_ANSWER_BYTES, Client


def define_client_flags() -> None:
    """Defines the flags: of the server, of a solve, of `predict`, and of generated text."""
    _define_server_flags()
    flags.DEFINE_float("tolerance", 0.0, "Relative residual to solve to; 0: the model's own.", 0.0)
    flags.DEFINE_integer("max_steps", 0, "Steps at most; 0: the model's own.", 0)
    flags.DEFINE_string("inputs", None, "JSON file {input: [rows]}; -: standard input.")
    flags.DEFINE_string("signature", "serving_default", "With predict: the signature to call.")
    flags.DEFINE_string("text", None, "A prompt for a language model.")
    flags.DEFINE_string(
        "vocabulary",
        None,
        "Vocabulary file of a model of words, in the order of ids; without it the text is read as bytes.",
    )
    flags.DEFINE_integer("max_new_tokens", 40, "Tokens to add at most.", 1)
    flags.DEFINE_float("temperature", 0.0, "0: the likeliest token, always.", 0.0)
    flags.DEFINE_integer("top_k", 0, "Draw from this many most likely tokens; 0: all.", 0)
    flags.DEFINE_float(
        "top_p",
        0.0,
        "Draw from the most likely tokens with this total probability; 0: all.",
        0.0,
        1.0,
    )
    flags.DEFINE_integer("seed", 0, "The same seed gives the same text.")
    flags.DEFINE_integer(
        "segment_tokens", 16, "Tokens per request; other clients wait for no more than these.", 1
    )
    flags.mark_flag_as_required("model_name")


def _define_server_flags() -> None:
    flags.DEFINE_string(
        "address", "localhost:8500", "host:port; 8501 with --rest. https:// in front turns TLS on."
    )
    flags.DEFINE_bool("rest", False, "Use REST instead of gRPC.")
    flags.DEFINE_string("model_name", None, "Name of the model in the server's configuration.")
    flags.DEFINE_string(
        "model_version", None, "The version to ask: its number, or its label. Default: the newest."
    )
    flags.DEFINE_float(
        "timeout",
        10.0,
        "Timeout of the whole call, in seconds, over all attempts; with stream, of each request.",
        1e-3,
    )
    flags.DEFINE_integer(
        "attempts", None, "Largest number of attempts. Default: as many as --timeout allows.", 1
    )
    flags.DEFINE_integer(
        "max_answer_bytes",
        MAX_ANSWER_BYTES,
        "Largest size of an answer that is read.",
        1,
        2**31 - 1,
    )
    flags.DEFINE_integer(
        "max_batch_size", None, "With predict: send a larger batch in parts. Default: in one.", 1
    )
    flags.DEFINE_multi_string("header", [], "NAME:VALUE to send with every request; repeatable.")
    flags.DEFINE_string(
        "token_file", None, "File of the token to send as Authorization: Bearer TOKEN; needs TLS."
    )
    flags.DEFINE_string(
        "certificate_authority",
        None,
        "PEM file of the authorities to trust. Default: the system's.",
    )
    flags.DEFINE_list(
        "client_certificate",
        None,
        "PEM file of this client's certificate and key, or CERTIFICATE,KEY.",
    )


def client_of(values: Any) -> Client:
    """Returns the client that the flags describe.

    Raises:
        ValueError: for a header that is not NAME:VALUE, and as `Client`. OSError: for unreadable files.
    """
    headers = {}
    for header in values.header:
        name, separator, value = header.partition(":")
        if not separator:
            raise ValueError(f"--header takes NAME:VALUE; received {header!r}.")
        headers[name.strip()] = value.strip()
    version, token = values.model_version, values.token_file
    certificate = values.client_certificate
    return Client(
        values.address,
        values.model_name,
        rest=values.rest,
        version=int(version) if version is not None and version.isdecimal() else version,
        timeout=values.timeout,
        attempts=values.attempts,
        max_answer_bytes=values.max_answer_bytes,
        max_batch_size=values.max_batch_size,
        headers=headers,
        token=None if token is None else pathlib.Path(token).read_text(encoding="utf-8").strip(),
        certificate_authority=values.certificate_authority,
        client_certificate=None if certificate is None else tuple(certificate),
    )


def read_inputs(path: str) -> dict[str, Any]:
    """Returns the inputs in a JSON file, or in standard input if the path is -.

    Raises:
        ValueError: if it does not hold a JSON object.
    """
    text = sys.stdin.read() if path == "-" else pathlib.Path(path).read_text(encoding="utf-8")
    try:
        inputs = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"--inputs={path} is no JSON: {error}. Write {{input: [rows]}}."
        ) from error
    if not isinstance(inputs, dict):
        raise ValueError(f"--inputs={path} must hold {{input: [rows]}}; received {inputs!r:.100}.")
    return inputs
