"""Compares an exported version with the Keras model that it was made from, in fresh processes."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfdeq import DEQLayer
from tfdeq.models.token_model import TokenModel
from tfdeq.programs.workdir import read_json
from tfdeq.serving.signatures.text_requests import is_equilibrium
from tfdeq.serving.verification import (
    card_checks,
    checks,
    conversation_checks,
    keras_checks,
    language_model_checks,
    language_model_options,
    quality,
    quality_checks,
)
from tfdeq.serving.verification.checks import Check
from tfdeq.serving.verification.questions import Questions, ask
from tfdeq.serving.versions import model_card, saved_model
from tfdeq.serving.versions.trained_run import load_run, tokens_of_test, windows_of


def verify(
    model: keras.Model,
    path: str | os.PathLike,
    examples: Mapping[str, np.ndarray],
    inputs: Any = None,
) -> tuple[list[Check], dict[str, Any]]:
    """Asks a version of any Keras model in both runtimes; it may be served if every check passed.

    A version whose files are not those of its manifest is not loaded at all.

    Args:
        model: the model that the version was made from by `tfdeq.serving.export`.
        path: the version folder.
        examples: input name -> [N, ...] real inputs, N >= 4.
        inputs: see `tfdeq.serving.export`.

    Returns:
        The checks, and runtime -> facts of its process: how each blocked import failed, seconds.

    Raises:
        tfdeq.serving.server.isolated.IsolationError: a process failed.
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
        tfdeq.serving.server.isolated.IsolationError, FileNotFoundError: see `verify`.
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
