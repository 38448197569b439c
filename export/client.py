"""Sends requests to a TensorFlow Serving server by gRPC or REST, with a timeout, retries and a tolerance.

python -m export.client --model_name=language_model --text='import numpy as' --max_new_tokens=40
"""

import json
import pathlib
import sys
from typing import Any

from absl import flags

from tfdeq import Status, describe
from tfdeq.programs import program
from tfdeq.serving.client.model_client import MAX_ANSWER_BYTES, Client

FLAGS = flags.FLAGS


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
    found = client.generate(
        FLAGS.text,
        max_new_tokens=FLAGS.max_new_tokens,
        temperature=FLAGS.temperature,
        top_k=FLAGS.top_k,
        top_p=FLAGS.top_p,
        seed=FLAGS.seed,
        vocabulary=vocabulary,
        **settings,
    )
    print(FLAGS.text + found.text)
    print(
        f"{len(found.tokens)} tokens, {found.steps} steps ({found.prompt_steps} of them for the "
        f"prompt), largest residual {found.residual:.1e}, {Status(found.status).name}",
        file=sys.stderr,
    )
    if found.status:
        print(describe(found.status), file=sys.stderr)


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
    flags.DEFINE_string("model_name", None, "Name of the model in the server's configuration.")
    flags.DEFINE_float(
        "timeout", 10.0, "Timeout of the whole call, in seconds, over all attempts.", 1e-3
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
    flags.DEFINE_float("tolerance", 0.0, "Relative residual to solve to; 0: the model's own.", 0.0)
    flags.DEFINE_integer("max_steps", 0, "Steps at most; 0: the model's own.", 0)
    flags.DEFINE_string(
        "inputs", None, "JSON file {input: [rows]}; calls --signature and prints JSON."
    )
    flags.DEFINE_string("signature", "serving_default", "With --inputs: the signature to call.")
    flags.DEFINE_string("text", None, "A prompt for a language model's `generate`.")
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
