"""Verifies an exported version against the Keras model that it was made from.

    python -m export.verify --workdir=runs/quickstart --model=runs/quickstart/export/1

The version is loaded in two fresh processes that cannot import tfdeq: with tf.saved_model.load, and
in TensorFlow's C++ runtime without any TensorFlow Python. Both answer text of the test split.
"""

import concurrent.futures
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from absl import flags

from export import (
    checks,
    conversation_checks,
    isolated,
    keras_checks,
    language_model_checks,
    model_card,
    warm_up,
)
from export.checks import Check
from export.isolated import Request
from export.text_requests import is_equilibrium
from export.trained_run import load_run, tokens_of_test, windows_of
from tfdeq import DEQLayer
from tfdeq.models.token_model import TokenModel
from trainers import program
from trainers.paths import expanded
from trainers.workdir import read_json, write_json

FLAGS = flags.FLAGS


def verify(
    model: keras.Model,
    path: str | os.PathLike,
    examples: Mapping[str, np.ndarray],
    inputs: Any = None,
) -> tuple[list[Check], dict[str, Any]]:
    """Asks a version of any Keras model in both runtimes; it may be served if every check passed.

    Args:
        model: the model that the version was made from by `export.saved_model.export`.
        path: the version folder.
        examples: input name -> [N, ...] real inputs, N >= 4.
        inputs: see `export.saved_model.export`.

    Returns:
        The checks, and runtime -> facts of its process: how each blocked import failed, seconds.

    Raises:
        export.isolated.IsolationError: a process failed.
        ValueError: examples of text, which the C++ runtime's interface here does not take.
    """
    texts = [name for name, value in examples.items() if np.asarray(value).dtype.kind in "OSU"]
    if texts:
        raise ValueError(
            f"The inputs {', '.join(texts)} are text; only numbers are asked. Compare a version of such a "
            "model yourself: tf.saved_model.load(path).signatures, with model(x)."
        )
    probe = keras_checks.probe_of(model, inputs, examples)
    batches = keras_checks.batch_requests(probe, ["serving_default", "encode", "step"])
    return _verify_version(
        path,
        batches,
        keras_checks.references(model, inputs, batches),
        keras_checks.neighbour_cases(probe, ["serving_default", "encode", "step"]),
        keras_checks.dial_request(probe),
        # The largest tolerance: at the smaller ones a row may stop apart by rounding.
        tolerance=max(layer.solver.tolerance for layer in _solving_layers(model)),
        explicit=False,
    )


def verify_language_model(
    model: TokenModel, path: str | os.PathLike, stream: np.ndarray
) -> tuple[list[Check], dict[str, Any]]:
    """Asks a language model's version in both runtimes, on text; see `verify`.

    Of a model that remembers, also texts in segments, whose memory is handed on from call to call:
    they must be what they are to the Keras model in one piece.

    Args:
        model: the model that the version was made from.
        path: the version folder.
        stream: [N] token ids of the test text.
    """
    windows = windows_of(stream, model.sequence_length, max(checks.BATCHES))
    batches = language_model_checks.batch_requests(model, windows)
    solves = is_equilibrium(model)
    return _verify_version(
        path,
        batches,
        language_model_checks.references(model, batches),
        language_model_checks.neighbour_cases(model, windows),
        language_model_checks.dial_request(model, windows),
        model.equilibrium.solver.tolerance if solves else 0.0,
        not solves,
        conversation_checks.Conversation(model, stream) if model.remembers else None,
    )


def _verify_version(
    path: str | os.PathLike,
    batches: list[Request],
    references: list[list[checks.Outputs]],
    cases: list[checks.Case],
    dial: Request,
    tolerance: float,
    explicit: bool,
    conversation: conversation_checks.Conversation | None = None,
) -> tuple[list[Check], dict[str, Any]]:
    path = expanded(path)
    records = [Request("warm-up", *record) for record in warm_up.read(path)]
    calls = [] if conversation is None else conversation.requests
    requests = [*batches, *(case.request for case in cases), dial, *records, *calls]
    card = read_json(path / model_card.FOLDER / model_card.NAME) or {}
    # XLA compiles each signature for each shape: some ten seconds for every request, at worst.
    seconds = isolated.TIMEOUT_SECONDS + (10 * len(requests) if card.get("jit_compile") else 0)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        started = {
            runtime: pool.submit(isolated.answer, path, requests, runtime, seconds)
            for runtime in isolated.RUNTIMES
        }
        answers = {runtime: future.result() for runtime, future in started.items()}
    found = [checks.check_files(path, card)]
    if "c" in answers:
        found.append(checks.check_ops(path, answers["c"].facts.pop("runnable_ops")))
    for runtime, answer in answers.items():
        outputs = iter(answer.outputs)

        def take(count, outputs=outputs):
            return [next(outputs) for _ in range(count)]

        found += [
            checks.check_against_model(batches, take(len(batches)), references, tolerance, runtime),
            checks.check_neighbours(cases, take(len(cases)), tolerance, runtime),
            checks.check_dial(take(1)[0], explicit, runtime),
        ]
        if records:
            found.append(checks.check_warm_up(records, take(len(records)), runtime))
        if conversation is not None:
            found.append(conversation.check(take(len(calls)), runtime))
    return found, {runtime: answer.facts for runtime, answer in answers.items()}


def _solving_layers(model: keras.Model) -> list[DEQLayer]:
    return [layer for layer in model._flatten_layers() if isinstance(layer, DEQLayer)]


def check_source(path: pathlib.Path, run_card: dict[str, Any]) -> Check:
    """Whether the version was made from the model file that it is compared with."""
    card = read_json(path / model_card.FOLDER / model_card.NAME) or {}
    made_from = card.get("source", {}).get("sha256")
    same = made_from == run_card["source"]["sha256"]
    text = "the model file's SHA-256 is the one in the model card"
    if not same:
        text = (
            f"the model card names {made_from}, the workdir's model.keras is "
            f"{run_card['source']['sha256']}. Export the model again, or verify against the "
            "workdir that the version was made from"
        )
    return Check("made from this model", same, text, {"sha256": made_from})


def main() -> None:
    if not _verify(FLAGS.workdir, pathlib.Path(FLAGS.model), FLAGS.report):
        sys.exit(1)


def _verify(workdir: str, path: pathlib.Path, report: str | None) -> bool:
    started = time.perf_counter()
    if not (path / "saved_model.pb").is_file():
        raise FileNotFoundError(
            f"No SavedModel in {str(path)!r}. Name OUTPUT/VERSION of: "
            f"{program.command('export', 'saved_model')} --workdir={workdir} --output=OUTPUT"
        )
    model, card, _ = load_run(workdir)
    stream, note = tokens_of_test(card["flags"], model.vocabulary_size, FLAGS.prepared_dir)
    found = [check_source(path, card)]
    compared, facts = verify_language_model(model, path, stream)
    found += compared
    passed = all(check.passed for check in found)
    result = {
        "passed": passed,
        "model": str(path),
        "workdir": workdir,
        "dataset": card["dataset"],
        "note": note,
        "checks": [check._asdict() for check in found],
        "processes": facts,
        "seconds": round(time.perf_counter() - started, 1),
    }
    target = pathlib.Path(report or os.path.join(workdir, "export_report.json"))
    write_json(str(target), result)
    for line in _lines(result):
        print(line)
    print(f"Report: {target}")
    return passed


def _lines(result: dict[str, Any]) -> list[str]:
    lines = [
        f"Verifying {result['model']} on the test text of {result['dataset']}. {result['note']}".strip()
    ]
    for runtime, facts in result["processes"].items():
        refused = ", ".join(facts["blocked"])
        lines.append(
            f"      {runtime}: a process that cannot import {refused}; loaded in "
            f"{facts['load_seconds']:.1f} s, answered in {facts['run_seconds']:.1f} s"
        )
    for check in result["checks"]:
        lines.append(f"{'ok  ' if check['passed'] else 'FAIL'}  {check['name']}: {check['text']}")
    verdict = "answers as the Keras model does" if result["passed"] else "must not be served"
    lines.append(f"The version {verdict} ({result['seconds']} s).")
    return lines


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder that trainers.language_model wrote.")
    flags.DEFINE_string("model", None, "The version folder to verify: OUTPUT/VERSION.")
    flags.DEFINE_string("report", None, "JSON to write. Default: WORKDIR/export_report.json.")
    flags.DEFINE_string(
        "prepared_dir", None, "Where TFDS keeps prepared copies. Default: as in the trainer."
    )
    flags.mark_flags_as_required(["workdir", "model"])


def run() -> None:
    """Entry point of the console script."""
    define_flags()
    program.run(main)


if __name__ == "__main__":
    run()
