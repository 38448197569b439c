"""Verifies an exported version against the Keras model that it was made from.

    python -m export.verify --workdir=runs/quickstart --model=runs/quickstart/export/1

The version is loaded in two fresh processes that cannot import tfdeq: with tf.saved_model.load, and
in TensorFlow's C++ runtime without any TensorFlow Python. Both answer text of the test split.
"""

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
    card_checks,
    checks,
    conversation_checks,
    keras_checks,
    language_model_checks,
    language_model_options,
    manifest,
    model_card,
    quality,
    quality_checks,
    saved_model,
    verified,
)
from export.checks import Check
from export.questions import Questions, ask
from export.text_requests import is_equilibrium
from export.trained_run import load_run, tokens_of_test, windows_of
from tfdeq import DEQLayer
from tfdeq.models.token_model import TokenModel
from trainers import program
from trainers.workdir import read_json, write_json

FLAGS = flags.FLAGS


def verify(
    model: keras.Model,
    path: str | os.PathLike,
    examples: Mapping[str, np.ndarray],
    inputs: Any = None,
) -> tuple[list[Check], dict[str, Any]]:
    """Asks a version of any Keras model in both runtimes; it may be served if every check passed.

    A version whose files are not those of its manifest is not loaded at all.

    Args:
        model: the model that the version was made from by `export.saved_model.export`.
        path: the version folder.
        examples: input name -> [N, ...] real inputs, N >= 4.
        inputs: see `export.saved_model.export`.

    Returns:
        The checks, and runtime -> facts of its process: how each blocked import failed, seconds.

    Raises:
        export.isolated.IsolationError: a process failed.
        FileNotFoundError: no version there, or one of an older release, which has no manifest.
        ValueError: examples of text, which the C++ runtime's interface here does not take.
    """
    texts = [name for name, value in examples.items() if np.asarray(value).dtype.kind in "OSU"]
    if texts:
        raise ValueError(
            f"The inputs {', '.join(texts)} are text; only numbers are asked. Compare a version of such a "
            "model yourself: tf.saved_model.load(path).signatures, with model(x)."
        )

    def questions(card: Mapping[str, Any]) -> Questions:
        names = ["serving_default", "encode", "step"]
        limit = card.get("max_steps_limit") or 1
        probe = keras_checks.probe_of(model, inputs, examples)
        batches = keras_checks.batch_requests(probe, names)
        batches += keras_checks.settings_requests(probe, names, limit)
        references = keras_checks.references(model, inputs, batches, limit)
        return Questions(
            batches,
            [checks.comparable(*pair, limit) for pair in zip(batches, references, strict=True)],
            keras_checks.neighbour_cases(probe, names),
            keras_checks.dial_request(probe),
            # The largest tolerance: at the smaller ones a row may stop apart by rounding.
            tolerance=max(layer.solver.tolerance for layer in _solving_layers(model)),
        )

    return ask(model, inputs, path, questions)


def verify_language_model(
    model: TokenModel,
    path: str | os.PathLike,
    stream: np.ndarray,
    *,
    windows: np.ndarray | None = None,
) -> tuple[list[Check], dict[str, Any]]:
    """Asks a language model's version in both runtimes, on text; see `verify`.

    Of a model that remembers, also texts in segments, whose memory is handed on from call to call:
    they must be what they are to the Keras model in one piece.

    Args:
        model: the model that the version was made from.
        path: the version folder.
        stream: [N] token ids of the test text.
        windows: [N, T] int32, those that the card's table of quality was measured on. None: those of
            the stream that `export.saved_model`'s program takes. Without rows: the table is not measured.

    Raises:
        export.isolated.IsolationError, FileNotFoundError: see `verify`.
    """
    if windows is None:
        windows = windows_of(stream, model.sequence_length, saved_model.WINDOWS)

    def questions(card: Mapping[str, Any]) -> Questions:
        limit = card.get("max_steps_limit") or 1
        asked = windows_of(stream, model.sequence_length, max(checks.BATCHES))
        keras_model = language_model_checks.KerasModel(model, limit)
        batches = [
            *language_model_checks.batch_requests(model, asked),
            *language_model_options.every_token_requests(model),
            *language_model_options.settings_requests(model, asked, limit),
            *language_model_options.generate_requests(model, asked, keras_model),
        ]
        references = keras_model.references(batches)
        solves = is_equilibrium(model)
        tolerances = quality.TOLERANCES if solves else (0.0,)
        return Questions(
            batches,
            [checks.comparable(*pair, limit) for pair in zip(batches, references, strict=True)],
            language_model_checks.neighbour_cases(model, asked),
            language_model_checks.dial_request(model, asked),
            tolerance=model.equilibrium.solver.tolerance if solves else 0.0,
            explicit=not solves,
            invalid=language_model_options.invalid_requests(model, asked),
            conversation=(
                conversation_checks.Conversation(model, stream) if model.remembers else None
            ),
            quality=quality_checks.Quality(windows, card.get("quality_by_tolerance"), tolerances),
        )

    return ask(model, None, path, questions)


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
    target = pathlib.Path(report or os.path.join(workdir, "export_report.json"))
    _say_earlier(target, workdir)
    digest = _digest(path)  # of what is verified now, whatever changes meanwhile
    compared, facts, run = verify_run(workdir, path, FLAGS.prepared_dir)
    passed = all(check.passed for check in compared)
    result = {
        "passed": passed,
        "model": str(path.absolute()),
        "digest": digest,
        "workdir": workdir,
        "dataset": run["dataset"],
        "note": run["note"],
        "checks": [check._asdict() for check in compared],
        "processes": facts,
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(str(target), result)
    for line in _lines(result):
        print(line)
    print(f"Report: {target}")
    return passed


def verify_run(
    workdir: str | os.PathLike, path: pathlib.Path, prepared_dir: str | None = None
) -> tuple[list[Check], dict[str, Any], dict[str, Any]]:
    """Asks the version of a run of `trainers.language_model`, and compares its card with the run.

    Args:
        workdir: the run's folder. path: the version's.
        prepared_dir: see the flag.

    Returns:
        The checks and facts of `verify_language_model`, and the run's entries of the card, with a `note`
        where its text is not the one that the model was trained on.

    Raises:
        As `verify_language_model`, `load_run` and `tokens_of_test`.
    """
    model, run, words = load_run(workdir)
    stream, note = tokens_of_test(run["flags"], model.vocabulary_size, prepared_dir)
    windows = windows_of(stream, model.sequence_length, saved_model.WINDOWS)
    found, facts = verify_language_model(
        # Of another text than the table's nothing can be said.
        *(model, path, stream),
        windows=windows[:0] if note else windows,
    )
    if found[0].passed:
        card = read_json(path / model_card.FOLDER / model_card.NAME) or {}
        found[1:1] = [
            check_source(path, run),
            card_checks.check_run(card, run),
            card_checks.check_words(path, card, words),
        ]
    return found, facts, {**run, "note": note}


def _digest(path: pathlib.Path) -> str | None:
    """The version's digest; None for a manifest that is none, as the checks say then."""
    try:
        return manifest.digest(path)
    except manifest.ChangedVersionError:
        return None


def _say_earlier(target: pathlib.Path, workdir: str) -> None:
    """Says of an earlier report that holds no more what has become of its version."""
    try:
        earlier = read_json(target)
    except ValueError:
        return
    if earlier and earlier.get("passed") is True:
        standing = verified.standing(earlier, workdir)
        if standing != verified.PASSED:
            print(f"{target} says that {earlier.get('model')} passed, but {standing}.")


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
