"""Compares an exported version with the Keras model that it was made from, in fresh processes."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfdeq.programs.workdir import read_json
from tfdeq.runs.kind import VOCABULARY
from tfdeq.serving.kinds import runs
from tfdeq.serving.kinds.kind import Kind
from tfdeq.serving.verification import run_checks
from tfdeq.serving.verification.checks import Check
from tfdeq.serving.verification.questions import ask
from tfdeq.serving.versions import model_card


def verify(
    model: keras.Model,
    path: str | os.PathLike,
    examples: Mapping[str, np.ndarray],
    inputs: Any = None,
) -> tuple[list[Check], dict[str, Any]]:
    """Verifies a version of any Keras model in both runtimes; serve it only if every check passed.

    A version whose files do not match its manifest is not loaded.

    Args:
        model: the model that the version was made from by `tfdeq.serving.export`.
        path: the version folder.
        examples: input name -> [N, ...] real inputs, N >= 4; for a language model {"tokens": [N, T]}.
        inputs: see `tfdeq.serving.export`.

    Returns:
        The checks, and runtime -> facts of its process: how each blocked import failed, seconds.

    Raises:
        tfdeq.serving.server.isolated.IsolationError: if a process failed.
        FileNotFoundError: if there is no version, or one of an older release without a manifest.
        ValueError: for text examples, which the interface to the C++ runtime does not support.
    """
    texts = [name for name, value in examples.items() if np.asarray(value).dtype.kind in "OSU"]
    if texts:
        raise ValueError(
            f"The inputs {', '.join(texts)} are text; only numbers are asked. Compare a version of such a "
            "model yourself: tf.saved_model.load(path).signatures, with model(x)."
        )
    return verify_kind(runs.of_model(model, inputs, examples), path)


def verify_kind(kind: Kind, path: str | os.PathLike) -> tuple[list[Check], dict[str, Any]]:
    """Verifies a version of a model of any kind, with the data of its kind; see `verify`.

    For a language model with a carried memory, texts are also read in segments, with the memory passed
    from call to call: the results must be those of the Keras model for the text in one piece.
    """
    return ask(kind.model, path, kind.expected, kind.questions)


def verify_run(
    workdir: str | os.PathLike, path: pathlib.Path, prepared_dir: str | None = None
) -> tuple[list[Check], dict[str, Any], runs.Run]:
    """Verifies the version of a trainer's run, and compares its card with the run.

    Args:
        workdir: folder of the run. path: folder of the version.
        prepared_dir: see the flag.

    Returns:
        The checks and facts of `verify`, and the run.

    Raises:
        The errors of `verify` and `tfdeq.serving.kinds.runs.read`.
    """
    run = runs.read(workdir, prepared_dir)
    found, facts = verify_kind(run.kind, path)
    if found[0].passed:
        card = read_json(path / model_card.FOLDER / model_card.NAME) or {}
        found[1:1] = [
            run_checks.check_source(path, run.card),
            run_checks.check_run(card, run.card),
            run_checks.check_words(path, card, run.kind.files().get(VOCABULARY)),
        ]
    return found, facts, run
