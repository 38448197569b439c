"""Writes a Keras model with solves as a SavedModel version for TF Serving."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfdeq import DEQLayer
from tfdeq.programs.paths import expanded
from tfdeq.programs.workdir import writing
from tfdeq.serving.edge.converted import Converted
from tfdeq.serving.kinds import runs
from tfdeq.serving.kinds.kind import LEFT_OUT, Kind
from tfdeq.serving.signatures.batching import SIZES as BATCH_SIZES
from tfdeq.serving.signatures.batching import THREADS, TIMEOUT_MICROS, Batching
from tfdeq.serving.signatures.signature import STATUS_TEXTS, Signature
from tfdeq.serving.verification import graph_checks
from tfdeq.serving.versions import (
    costs,
    further_files,
    loading,
    manifest,
    model_card,
    publishing,
    restored_model,
    saved_graph,
    warm_up,
)

Function = tf.types.experimental.ConcreteFunction


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
    only: Collection[str] | None = None,
) -> pathlib.Path:
    """Writes a Keras model with a `DEQLayer` in it as `output/<version>/`, atomically.

    Every signature takes `tolerance` and `max_steps` and returns `residual`, `steps` and `status`, for
    each example: `serving_default`, `encode` and `step` (see `keras_signatures` of
    `tfdeq.serving.signatures.keras_signatures`); the language models of `tfdeq.models` have their own
    signatures (see `tfdeq.serving.signatures.language_model_signatures`).

    Args:
        model: a built model.
        output: folder of the versions, created if missing; the server's model base path. `~` is the
            home folder.
        signatures: instead of these: name -> concrete function of named inputs that returns a dict of
            tensors (see `tfdeq.serving.signatures.signature.trace`), or `Signature` with the meanings.
        inputs: nest of tf.TensorSpec like the model's input; None: a functional model's own.
        version: integer >= 0; None: the highest existing one + 1.
        jit_compile: whether to compile with XLA. The stock server then needs
            --xla_cpu_compilation_enabled, or every request fails.
        examples: input name -> [N, ...] real inputs, which the server answers at each batch size before
            it serves the version. None: no such warm-up records.
        batch_sizes: sizes of the batches into which requests are joined, in the version's own graph;
            see `tfdeq.serving.signatures.batching`. A smaller batch is padded with copies of a row.
        batch_threads: number of batches that run at the same time. 0: requests are not joined.
        batch_timeout_micros: how long an incomplete batch waits for more requests. 0: the requests that
            are waiting when a thread becomes free form a batch.
        card: additional entries of `assets.extra/model_card.json`, which override the general ones.
        files: name -> text of additional files under `assets.extra/`; names without a folder.
        max_steps_limit: largest number of evaluations in each solve that a request to the version's own
            signatures can ask for, and the budget of a request with only a tolerance. None: 100, or
            that of the model's solvers, if it is more. A Broyden solver keeps a state for each
            evaluation.
        max_request_values: limit for the numbers in a request to the version's own signatures and its
            answer together; larger requests are refused. None: 2²⁴, or as many as the largest batch
            has, if more.
        patience, absolute_tolerance: settings of the solvers in the version's own signatures and in the
            model that `tfdeq.serving.load_model` restores; see `tfdeq.solvers.Solver`. None: those of
            the layers.
        gradients: whether to write the implicit gradients of the signatures too, for training the
            loaded version without tfdeq. Serving does not need them, and they make the export slower;
            without them such a gradient is an error. `tfdeq.serving.load_model` does not need them.
        keras_model: whether `tfdeq.serving.load_model` can restore the model. For this the model is
            built again and compared with the exported one.
        only: names of the version's own signatures to write. `serving_default` is always written, and
            so are `encode` with `step` and `generate_first` with `generate_next`. None: all of them.

    Returns:
        The path of the version.

    Raises:
        tfdeq.serving.versions.publishing.VersionExistsError: if the version exists; nothing was
            changed.
        ValueError: for a model without a solve, a name in `only` that is none of its signatures, a
            signature that writes variables, calls Python or is jit-compiled without jit_compile,
            examples that do not fit, file names that are used or lead out of the folder, or a model
            that `tfdeq.serving.load_model` would restore differently.
        OSError: if the version cannot be written, for example because the disk is full; nothing of it
            remains.

    Example:
        >>> import tempfile, tfdeq
        >>> x, z = keras.Input((2,), name="x"), keras.Input((2,))
        >>> cell = keras.Model([z, x], keras.ops.tanh(x - 0.5 * z))
        >>> model = keras.Model(x, tfdeq.DEQLayer(cell, "fixed_point_iteration")(x))
        >>> export(model, tempfile.mkdtemp()).name
        '1'
    """
    if signatures is not None and (max_steps_limit, max_request_values, only) != (None, None, None):
        raise ValueError(
            "max_steps_limit, max_request_values and only are of export's own signatures; received "
            "signatures too."
        )
    solvers = _solvers_with(model, patience=patience, absolute_tolerance=absolute_tolerance)
    with solvers:
        return export_kind(
            runs.of_model(model, inputs, examples),
            output,
            signatures,
            version=version,
            jit_compile=jit_compile,
            examples=examples,
            batch_sizes=batch_sizes,
            batch_threads=batch_threads,
            batch_timeout_micros=batch_timeout_micros,
            card=card,
            files=files,
            max_steps_limit=max_steps_limit,
            max_request_values=max_request_values,
            gradients=gradients,
            keras_model=keras_model,
            only=only,
        )


def export_kind(
    kind: Kind,
    output: str | os.PathLike,
    signatures: Mapping[str, Signature | Function] | None = None,
    *,
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
    gradients: bool = False,
    keras_model: bool = True,
    edge: Mapping[str, Converted] | None = None,
    only: Collection[str] | None = None,
    with_costs: bool = False,
) -> pathlib.Path:
    """Writes a model with its kind's data: quality by tolerance, warm-up records, files.

    Args:
        kind: the model and its data; see `tfdeq.serving.kinds`.
        examples: as for `export`; None: those of the kind.
        edge: name -> converted model, written under assets.extra/ beside the card; see
            `tfdeq.serving.edge.litert`.
        with_costs: whether the card says what each signature costs; see `costs`. For this every signature
            answers examples before the version is published.
        Others: as for `export`, which also describes results and errors.
    """
    output = expanded(output)
    publishing.check_free(output, version)
    files = {**kind.files(), **(files or {})}
    further_files.check_names(files)
    examples = kind.warm_up() if examples is None else examples
    batching = _batching(batch_sizes, batch_threads, batch_timeout_micros, gradients)
    described: dict[str, Any] = {"status": STATUS_TEXTS, "parameters": kind.model.count_params()}
    if signatures is None:
        signatures = kind.signatures(
            jit_compile=jit_compile,
            max_steps_limit=max_steps_limit,
            max_request_values=max_request_values,
            batching=batching,
            only=only,
        )
        described = {**kind.card(max_steps_limit), **_quality(kind, signatures)}
        if only is not None:
            described[LEFT_OUT] = [n for n in kind.signature_names() if n not in signatures]
    loadable = loading.describe(kind.model) if keras_model else None
    if loadable is not None:
        restored_model.check(kind.model, loadable, kind.call_inputs())
    signatures = _servable(signatures, jit_compile)
    if not any(signature.joined for signature in signatures.values()):
        batching = None
    described = {
        **described,
        "jit_compile": jit_compile,
        "allowed_batch_sizes": list(batch_sizes),
        "batching": None if batching is None else batching._asdict(),
        "warm_up_records": examples is not None,
        **({"edge": {name: file.described for name, file in edge.items()}} if edge else {}),
        **({"signature_costs": costs.measured(signatures, examples)} if with_costs else {}),
        **(card or {}),
    }
    records = [] if examples is None else list(warm_up.requests(signatures, examples, batch_sizes))
    content = _Content(kind.model, signatures, gradients, loadable, records, files, edge or {})
    return publishing.publish(
        output,
        lambda folder: content.write(folder, output),
        version,
        lambda folder, number: _finish(folder, number, output, signatures, described),
    )


class _Content(NamedTuple):
    """The contents of a version's folder, except its card and manifest."""

    model: keras.Model
    signatures: Mapping[str, Signature]
    gradients: bool
    loadable: loading.Description | None
    records: Sequence[Any]
    files: Mapping[str, str]
    edge: Mapping[str, Converted]

    def write(self, folder: pathlib.Path, output: pathlib.Path) -> None:
        extra = folder / model_card.FOLDER
        with writing(str(output), tf.errors.OpError):
            functions = {name: signature.function for name, signature in self.signatures.items()}
            saved_graph.write(self.model, functions, folder, self.gradients)
            extra.mkdir()
            if self.loadable is not None:
                loading.write(self.model, self.loadable, extra)
            if self.records:
                warm_up.write(folder, output.name, self.records)
            further_files.write(self.files, extra)
            for name, file in self.edge.items():
                (extra / name).write_bytes(file.content)


def _finish(
    folder: pathlib.Path,
    number: int,
    output: pathlib.Path,
    signatures: Mapping[str, Signature],
    described: Mapping[str, Any],
) -> None:
    general = model_card.general_card(number, model_card.signature_card(signatures))
    with writing(str(output)):
        model_card.write(folder, {**general, **described})
        manifest.write(folder)


def _quality(kind: Kind, signatures: Mapping[str, Signature]) -> dict[str, Any]:
    """Returns the card's table, if its data are available and its signature is served."""
    table = kind.quality()
    if table is None or table.signature not in signatures:
        return {}
    return {"quality_by_tolerance": table.measured(signatures[table.signature])}


def _servable(
    signatures: Mapping[str, Signature | Function], jit_compile: bool
) -> dict[str, Signature]:
    """Returns the signatures, including those without meanings; they must be servable."""
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
    """A context in which the layers' solvers have the given settings, where these are not None."""
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


def _batching(
    sizes: Sequence[int], threads: int, timeout_micros: int, gradients: bool
) -> Batching | None:
    """Returns how requests are joined; None with gradients, which the joining op does not have."""
    return None if gradients or not threads else Batching(tuple(sizes), threads, timeout_micros)
