"""Asks a TensorFlow Serving server by gRPC or REST, with a timeout, retries and a tolerance.

    python -m export.client health --model_name=language_model
    python -m export.client models --model_name=language_model
    python -m export.client predict --model_name=classifier --inputs=inputs.json
    python -m export.client generate --model_name=language_model --text='import numpy as' --max_new_tokens=40
    python -m export.client stream --model_name=language_model --text='import numpy as'

health says which versions of the model are loaded, and ends with status 1 if none answers. models also
lists the signatures with their tensors. predict sends a JSON file {input: [rows]}, or standard input (-),
to --signature and prints JSON. generate continues a text, stream prints it as it comes. Without a command,
--text means generate and --inputs means predict.
"""

import json
import pathlib
import sys
from typing import Any

from absl import flags

from tfdeq import Status, describe
from tfdeq.programs import program
from tfdeq.serving.client import client_text
from tfdeq.serving.client.client_flags import client_of, define_client_flags, read_inputs
from tfdeq.serving.client.client_values import tensors_text
from tfdeq.serving.client.model_client import Client

FLAGS = flags.FLAGS


def main(arguments: list[str]) -> None:
    command = _command(arguments)
    client = client_of(FLAGS)
    try:
        _COMMANDS[command](client)
    finally:
        client.close()


def _command(arguments: list[str]) -> str:
    if not arguments and (FLAGS.text is None) != (FLAGS.inputs is None):
        return "predict" if FLAGS.text is None else "generate"
    if len(arguments) != 1 or arguments[0] not in _COMMANDS:
        raise ValueError(
            f"Name one command: {', '.join(_COMMANDS)}; or give --text or --inputs, and not both. "
            f"Received {' '.join(arguments) or 'none'}. See --help."
        )
    needed = {"predict": "inputs", "generate": "text", "stream": "text"}.get(arguments[0])
    if needed and getattr(FLAGS, needed) is None:
        raise ValueError(f"{arguments[0]} needs --{needed}. See --help.")
    return arguments[0]


def _health(client: Client) -> None:
    found = client.status()
    for version in found:
        print(
            f"{FLAGS.model_name} version {version.version}: {version.state} {version.error}".strip()
        )
    if not any(version.state == "AVAILABLE" for version in found):
        sys.exit(
            "No version answers requests. The server's log says why, or that it is still loading."
        )


def _models(client: Client) -> None:
    _health(client)
    for name, served in client.signatures().items():
        print(
            f"{name}\n  takes    {tensors_text(served.inputs)}\n  returns  {tensors_text(served.outputs)}"
        )


def _predict(client: Client) -> None:
    answer = client.predict(read_inputs(FLAGS.inputs), FLAGS.signature, **_solving())
    found = {name: value.tolist() for name, value in answer.items()}
    print(json.dumps(found, default=lambda text: text.decode(errors="replace")))


def _generate(client: Client) -> None:
    found = client.generate(FLAGS.text, **_sampling())
    print(FLAGS.text + found.text)
    _report(found)


def _stream(client: Client) -> None:
    print(FLAGS.text, end="", flush=True)
    parts = []
    for part in client.segments(FLAGS.text, **_sampling()):
        parts.append(part)
        print(part.text, end="", flush=True)
    print()
    _report(client_text.together(parts))


def _report(found: client_text.Segment) -> None:
    print(
        f"{len(found.tokens)} tokens, {found.steps} steps ({found.prompt_steps} of them for the prompt), "
        f"largest residual {found.residual:.1e}, {Status(found.status).name}; ended by "
        f"{client_text.FINISH.get(found.finish, found.finish)}",
        file=sys.stderr,
    )
    if found.status:
        print(describe(found.status), file=sys.stderr)


def _solving() -> dict[str, Any]:
    return {"tolerance": FLAGS.tolerance or None, "max_steps": FLAGS.max_steps or None}


def _sampling() -> dict[str, Any]:
    vocabulary = None
    if FLAGS.vocabulary is not None:
        vocabulary = pathlib.Path(FLAGS.vocabulary).read_text(encoding="utf-8").splitlines()
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "segment_tokens")
    return {
        **{name: getattr(FLAGS, name) for name in names},
        "vocabulary": vocabulary,
        **_solving(),
    }


_COMMANDS = {
    "health": _health,
    "models": _models,
    "predict": _predict,
    "generate": _generate,
    "stream": _stream,
}


def run() -> None:
    """Entry point of the console script."""
    define_client_flags()
    program.run(main, arguments=True)


if __name__ == "__main__":
    run()
