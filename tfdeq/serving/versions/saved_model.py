"""Writes a Keras model with solves as a SavedModel version for TF Serving."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeq import DEQLayer
from tfdeq.models import ExplicitLanguageModel, LanguageModel
from tfdeq.models.token_model import TokenModel
from tfdeq.programs.paths import expanded
from tfdeq.programs.workdir import writing
from tfdeq.serving.signatures import language_model_signatures as language_model
from tfdeq.serving.signatures import request_checks
from tfdeq.serving.signatures.batching import SIZES as BATCH_SIZES
from tfdeq.serving.signatures.batching import THREADS, TIMEOUT_MICROS, Batching
from tfdeq.serving.signatures.keras_signatures import keras_signatures
from tfdeq.serving.signatures.signature import STATUS_TEXTS, Signature, own_settings, solving_of
from tfdeq.serving.signatures.text_requests import LANGUAGE_STATUS_TEXTS, is_equilibrium
from tfdeq.serving.verification import graph_checks
from tfdeq.serving.verification.quality import TOLERANCES, quality_by_tolerance
from tfdeq.serving.versions import (
    further_files,
    loading,
    manifest,
    model_card,
    publishing,
    restored_model,
    saved_graph,
    warm_up,
)
from tfdeq.serving.versions.trained_run import VOCABULARY

Function = tf.types.experimental.ConcreteFunction

BATCHING = Batching()
# Windows of the test text for the card's table and the warm-up records.
WINDOWS = 64


def export(
    model: keras.Model,
    output: str | os.PathLike,
    signatures: Mapping[str, Signature | Function] | None = None,
    *,
    inputs: Any = None,
    version: int | None = None,
    jit_compile: bool = False,
    examples: Mapping[str, np.ndarray] | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    batch_threads: int = THREADS,
    batch_timeout_micros: int = TIMEOUT_MICROS,
    card: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
    max_steps_limit: int | None = None,
    max_request_values: int | None = None,
    patience: int | None = None,
    absolute_tolerance: float | None = None,
    gradients: bool = False,
    keras_model: bool = True,
) -> pathlib.Path:
    """Writes a Keras model with a `DEQLayer` in it as `output/<version>/`, atomically.

    Every signature takes `tolerance` and `max_steps` and returns `residual`, `steps` and `status`, for
    each example: `serving_default`, `encode` and `step` (see `keras_signatures` of
    `tfdeq.serving.signatures.signature`);
    the language models of `tfdeq.models` have signatures of their own (see
    `tfdeq.serving.signatures.language_model_signatures`).

    Args:
        model: a built model.
        output: folder of the versions, made if missing; the server's model base path. `~` is the home
            folder.
        signatures: others than these: name -> concrete function of named inputs that returns a dict
            of tensors (see `tfdeq.serving.signatures.signature.trace`), or `Signature` with the meanings.
        inputs: nest of tf.TensorSpec like the model's input; None: a functional model's own.
        version: integer >= 0; None: the highest existing one + 1.
        jit_compile: compile with XLA. The stock server then needs --xla_cpu_compilation_enabled, or
            every request fails.
        examples: input name -> [N, ...] real inputs; the server answers them before it takes the
            version into service, at each of the batch sizes. None: no such records.
        batch_sizes: sizes of the batches that requests are joined to, in the version's own graph; see
            `tfdeq.serving.signatures.batching`. A smaller batch is filled up with copies of a row.
        batch_threads: batches that run at once. 0: requests are not joined.
        batch_timeout_micros: how long a batch that is not full waits for more. 0: what waits when a
            thread is free makes a batch.
        card: further entries of `assets.extra/model_card.json`, beside or over the general ones.
        files: name -> text of further files under `assets.extra/`; names without a folder.
        max_steps_limit: evaluations of each solve that a request to the version's own signatures can ask
            for, and what one that names a tolerance alone gets. None: 100, or what the model's solvers
            have, if that is more. A Broyden solver keeps a state for each.
        max_request_values: numbers that a request to the version's own signatures and its answer may
            have together; larger ones are refused. None: 2²⁴, or those of the largest batch, if
            they are more.
        patience, absolute_tolerance: of the solvers of the version's own signatures and of the model
            that `tfdeq.serving.load_model` gives back; see `tfdeq.solvers.Solver`. None: as the layers have
            them.
        gradients: write the implicit gradients of the signatures too, for those who train the loaded
            version without tfdeq. Nothing that is served needs them, and they make the export longer;
            without them such a gradient is an error. `tfdeq.serving.load_model` needs none.
        keras_model: whether `tfdeq.serving.load_model` can give the model back. It is built again for that
            and compared with the one that is exported.

    Returns:
        The path of the version.

    Raises:
        tfdeq.serving.versions.publishing.VersionExistsError: the version is there; nothing was touched.
        ValueError: a model without a solve, a signature that writes variables, calls Python or is
            jit-compiled unasked, examples that do not fit, names of files that are taken or lead out
            of the folder, or a model that `tfdeq.serving.load_model` would give back as another one.
        OSError: a full disk, or what else keeps the version from being written; nothing of it stays.

    Example:
        >>> import tempfile, tfdeq
        >>> x, z = keras.Input((2,), name="x"), keras.Input((2,))
        >>> cell = keras.Model([z, x], keras.ops.tanh(x - 0.5 * z))
        >>> model = keras.Model(x, tfdeq.DEQLayer(cell)(x))
        >>> export(model, tempfile.mkdtemp()).name
        '1'
    """
    output = expanded(output)
    publishing.check_free(output, version)
    further_files.check_names(files or {})
    own: dict[str, Any] = {}
    if signatures is not None and (max_steps_limit, max_request_values) != (None, None):
        raise ValueError(
            "max_steps_limit and max_request_values are of export's own signatures; received signatures "
            "too."
        )
    batching = _batching(batch_sizes, batch_threads, batch_timeout_micros, gradients)
    with _solvers_with(model, patience=patience, absolute_tolerance=absolute_tolerance):
        if signatures is None:
            signatures = signatures_of(
                model,
                inputs,
                jit_compile=jit_compile,
                max_steps_limit=max_steps_limit,
                max_request_values=max_request_values,
                batching=batching,
            )
            own = _own_settings(model, max_steps_limit)
        loadable = loading.describe(model) if keras_model else None
        if loadable is not None:
            restored_model.check(model, loadable, inputs, examples)
    signatures = _servable(signatures, jit_compile)
    if not any(signature.joined for signature in signatures.values()):
        batching = None
    described = {
        **_described(model, jit_compile, examples, batch_sizes, batching),
        **own,
        **(card or {}),
    }

    records = [] if examples is None else list(warm_up.requests(signatures, examples, batch_sizes))

    def write(folder: pathlib.Path) -> None:
        extra = folder / model_card.FOLDER
        with writing(str(output), tf.errors.OpError):
            functions = {name: signature.function for name, signature in signatures.items()}
            saved_graph.write(model, functions, folder, gradients)
            extra.mkdir()
            if loadable is not None:
                loading.write(model, loadable, extra)
            if records:
                warm_up.write(folder, output.name, records)
            further_files.write(files or {}, extra)

    def finish(folder: pathlib.Path, number: int) -> None:
        general = model_card.general_card(number, model_card.signature_card(signatures))
        with writing(str(output)):
            model_card.write(folder, {**general, **described})
            manifest.write(folder)

    return publishing.publish(output, write, version, finish)


def _servable(
    signatures: Mapping[str, Signature | Function], jit_compile: bool
) -> dict[str, Signature]:
    """The signatures, those without meanings too, if a server can run them."""
    found = {
        name: given if isinstance(given, Signature) else Signature(given, {}, {})
        for name, given in signatures.items()
    }
    for name, signature in found.items():
        problems = graph_checks.problems(signature.function, jit_compile)
        if problems:
            raise ValueError(
                f"The signature {name!r} cannot be served: {'; '.join(problems)}. Trace it for "
                "inference (training=False), of TensorFlow operations only, without jit_compile."
            )
    return found


@contextlib.contextmanager
def _solvers_with(model: keras.Model, **settings: Any) -> Iterator[None]:
    """Gives the model's layers solvers with those of the settings that are not None, for a while."""
    settings = {name: value for name, value in settings.items() if value is not None}
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, DEQLayer)]
    own = [layer.solver for layer in layers]
    try:
        for layer in layers if settings else ():
            layer.solver = dataclasses.replace(layer.solver, **settings)
        yield
    finally:
        for layer, solver in zip(layers, own, strict=True):
            layer.solver = solver


def signatures_of(
    model: keras.Model,
    inputs: Any = None,
    *,
    jit_compile: bool = False,
    compaction: bool = True,
    max_steps_limit: int | None = None,
    max_request_values: int | None = None,
    batching: Batching | None = BATCHING,
) -> dict[str, Signature]:
    """Returns the signatures that `export` gives a model, with the checks of requests in front."""
    settings = {
        "jit_compile": jit_compile,
        "compaction": compaction,
        "max_steps_limit": max_steps_limit,
    }
    text_length = None
    if isinstance(model, LanguageModel | ExplicitLanguageModel):
        found = language_model.language_model_signatures(model, **settings)
        text_length = model.sequence_length
    else:
        found = keras_signatures(model, inputs, **settings)
    return request_checks.guard_all(
        found,
        batching,
        text_length=text_length,
        jit_compile=jit_compile,
        max_request_values=max_request_values,
    )


def _batching(
    sizes: Sequence[int], threads: int, timeout_micros: int, gradients: bool
) -> Batching | None:
    """How requests are joined; None, where not: no gradient goes through the op that joins them."""
    return None if gradients or not threads else Batching(tuple(sizes), threads, timeout_micros)


def _own_settings(model: keras.Model, max_steps_limit: int | None) -> dict[str, Any]:
    """Those of requests without any; nothing for a model in which nothing is solved."""
    if isinstance(model, TokenModel) and not is_equilibrium(model):
        return {}
    return own_settings(model, solving_of(model, max_steps_limit))


def export_language_model(
    model: TokenModel,
    output: str | os.PathLike,
    *,
    version: int | None = None,
    jit_compile: bool = False,
    windows: np.ndarray | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    batch_threads: int = THREADS,
    batch_timeout_micros: int = TIMEOUT_MICROS,
    card: Mapping[str, Any] | None = None,
    vocabulary: str | None = None,
    max_steps_limit: int | None = None,
    max_request_values: int | None = None,
    gradients: bool = False,
) -> pathlib.Path:
    """Writes a language model with what only its text can give: quality table and warm-up records.

    Args:
        model: a built `tfdeq.models.LanguageModel` or `ExplicitLanguageModel`.
        output, version, jit_compile, batch_sizes, batch_threads, batch_timeout_micros, card,
            max_steps_limit, max_request_values, gradients: see `export`.
        windows: [N, T] int32 token ids of the test text, for the card's table of bits per token by tolerance
            and for the warm-up records. None: neither.
        vocabulary: text of a file of the words by id, one a line; kept as
            `assets.extra/vocabulary.txt`.

    Returns:
        The path of the version.

    Raises:
        tfdeq.serving.versions.publishing.VersionExistsError: the version is there; nothing was touched.
        ValueError: a vocabulary of another size than the model's.
    """
    publishing.check_free(output, version)
    words = None if vocabulary is None else len(vocabulary.splitlines())
    if words is not None and words != model.vocabulary_size:
        raise ValueError(
            f"The vocabulary has {words:,} lines; the model has {model.vocabulary_size:,} token "
            f"ids. Give the {VOCABULARY} of the run that trained the model."
        )
    signatures = signatures_of(
        model,
        jit_compile=jit_compile,
        max_steps_limit=max_steps_limit,
        max_request_values=max_request_values,
        batching=_batching(batch_sizes, batch_threads, batch_timeout_micros, gradients),
    )
    described = {
        "status": LANGUAGE_STATUS_TEXTS,
        "sequence_length": model.sequence_length,
        "vocabulary": {
            "size": model.vocabulary_size,
            "file": None if vocabulary is None else VOCABULARY,
        },
        **_own_settings(model, max_steps_limit),
        **(card or {}),
    }
    examples = None
    if windows is not None:
        # Where nothing is solved, every tolerance is the model's own.
        tolerances = TOLERANCES if is_equilibrium(model) else (0.0,)
        described["quality_by_tolerance"] = quality_by_tolerance(
            signatures["score"], windows, tolerances
        )
        examples = language_model.examples(windows, model)
    return export(
        model,
        output,
        signatures,
        version=version,
        jit_compile=jit_compile,
        examples=examples,
        batch_sizes=batch_sizes,
        batch_threads=batch_threads,
        batch_timeout_micros=batch_timeout_micros,
        card=described,
        files={} if vocabulary is None else {VOCABULARY: vocabulary},
        gradients=gradients,
    )


def _described(model, jit_compile, examples, batch_sizes, batching) -> dict[str, Any]:
    """What the card says of any model."""
    return {
        "status": STATUS_TEXTS,
        "jit_compile": jit_compile,
        "allowed_batch_sizes": list(batch_sizes),
        "batching": None if batching is None else batching._asdict(),
        "warm_up_records": examples is not None,
        "parameters": model.count_params(),
    }
