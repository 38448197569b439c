"""The kind of a model, and a trained run with the data that its kind needs."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

# Keras finds a model's classes by name only if they are imported.
import tfdeq.baselines
import tfdeq.models  # noqa: F401
from tfdeq.data.text import registry
from tfdeq.data.windows import spread_windows
from tfdeq.models import Reasoner
from tfdeq.models.token_model import TokenModel
from tfdeq.programs import commands
from tfdeq.programs.paths import expanded
from tfdeq.programs.workdir import read_json
from tfdeq.runs import kind as recorded
from tfdeq.runs import measures
from tfdeq.serving.kinds.keras_kind import KerasKind
from tfdeq.serving.kinds.kind import Kind
from tfdeq.serving.kinds.language_model_kind import LanguageModelKind
from tfdeq.serving.kinds.picture_kind import PictureKind
from tfdeq.serving.kinds.reasoner_kind import ReasonerKind
from tfdeq.serving.signatures.keras_signatures import input_structure
from tfdeq.serving.signatures.reasoner_signatures import PUZZLE
from tfdeq.serving.versions import manifest

# Number of windows of the test text for the card's table and the warm-up records.
WINDOWS = 64
# Omitted from the card: the curves are long, and the configuration is already in it.
_LEFT_OUT = ("train", "config")


class Run(NamedTuple):
    """A trained run, with the data for an export and its verification."""

    kind: Kind
    card: dict[str, Any]  # the model card's entries about the run
    note: str = ""  # set if the data are not those that the model was trained on


def of_model(model: keras.Model, inputs: Any = None, examples: Any = None) -> Kind:
    """Returns the kind of a model; inputs, examples: see `tfdeq.serving.export` and `verify`."""
    if isinstance(model, TokenModel) and inputs is None:
        tokens = (examples or {}).get("tokens")
        stream = None if tokens is None else np.asarray(tokens, np.int32).reshape(-1)
        return LanguageModelKind(model, stream=stream)
    if isinstance(model, Reasoner) and inputs is None:
        return ReasonerKind(model, examples=examples)
    return KerasKind(model, inputs, examples)


def read(workdir: str | os.PathLike, prepared_dir: str | None = None, data: bool = True) -> Run:
    """Reads a trained run from its folder.

    Args:
        prepared_dir: where TFDS keeps prepared copies of a text.
        data: whether to read the run's test data too.

    Raises:
        FileNotFoundError: if there is no such folder, or no model in it yet.
        ValueError: for an invalid file, or data that are not the run's.
    """
    workdir = expanded(workdir)
    model = _model(workdir)
    config = read_json(workdir / "config.json") or {}
    metrics = read_json(workdir / "metrics.json") or {}
    entry = metrics.get("kind") or {}
    # Runs of older releases trained language models only.
    make = _KINDS.get(entry.get("name", recorded.LANGUAGE_MODEL))
    if make is None:
        raise ValueError(
            f"The run in {str(workdir)!r} has the kind {entry.get('name')!r}, which this release does "
            f"not know. Known: {', '.join(_KINDS)}. Use the release that trained it."
        )
    kind, card, note = make(model, workdir, config, entry, prepared_dir, data)
    path = workdir / "model.keras"
    general = {
        "kind": entry.get("name", recorded.LANGUAGE_MODEL),
        "dataset": config.get("dataset"),
        "flags": config,
        "metrics": {name: value for name, value in metrics.items() if name not in _LEFT_OUT},
        "source": {"path": str(path), "sha256": manifest.sha256(path)},
    }
    return Run(kind, {**card, **general}, note)


def tokens_of_test(
    config: Mapping[str, Any], vocabulary_size: int, prepared_dir: str | None
) -> tuple[np.ndarray, str]:
    """Returns the test split's tokens, and "", or a note if the text is not the trainer's."""
    if "dataset" not in config:
        raise ValueError(
            "The run's config.json is missing, or names no data set. Export such a run with --nodata."
        )
    loaded = registry.load(
        config["dataset"],
        data_dir=config.get("data_dir"),
        files=config.get("files"),
        prepared_dir=prepared_dir,
    )
    if loaded.vocabulary_size != vocabulary_size:
        raise ValueError(
            f"The data set {config['dataset']!r} has {loaded.vocabulary_size:,} token ids, the model "
            f"{vocabulary_size:,}: config.json and model.keras belong to different runs."
        )
    trained_on = config.get("data_fingerprint", loaded.fingerprint)
    note = "" if trained_on == loaded.fingerprint else "Not the text that the model was trained on."
    return loaded.test, note


def _model(workdir: pathlib.Path) -> keras.Model:
    path = workdir / "model.keras"
    again = f"{commands.command('trainers.language_model')} --workdir={workdir}"
    if not path.is_file():
        raise FileNotFoundError(
            f"No model in {str(workdir)!r}: {str(path)!r} is missing. Train one first, for example: {again}"
        )
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:  # zip, JSON and weight errors have no common class
        raise ValueError(
            f"{str(path)!r} cannot be read as a Keras model: {error}. Delete it and train again, for "
            f"example: {again}"
        ) from error


def _language_model(
    model: keras.Model,
    workdir: pathlib.Path,
    config: Mapping[str, Any],
    entry: Mapping[str, Any],
    prepared_dir: str | None,
    data: bool,
) -> tuple[Kind, dict[str, Any], str]:
    if not isinstance(model, TokenModel):
        raise ValueError(
            f"{str(workdir / 'model.keras')!r} holds a {type(model).__name__}, and the run does not say what "
            "kind of task it was. Use tfdeq.serving.export for a model of your own."
        )
    text = workdir / recorded.VOCABULARY
    vocabulary = text.read_text(encoding="utf-8") if text.is_file() else None
    card = {"unit": "word" if vocabulary is not None else "byte"}
    if not data:
        return LanguageModelKind(model, vocabulary=vocabulary), card, ""
    stream, note = tokens_of_test(config, model.vocabulary_size, prepared_dir)
    windows = spread_windows(stream, model.sequence_length, WINDOWS)
    return LanguageModelKind(model, windows, stream, vocabulary, trained_on=not note), card, note


def _examples(
    model: keras.Model,
    workdir: pathlib.Path,
    config: Mapping[str, Any],
    entry: Mapping[str, Any],
    prepared_dir: str | None,
    data: bool,
) -> tuple[Kind, dict[str, Any], str]:
    kept, names, inputs = recorded.read(workdir), entry.get("inputs"), None
    if names is None:
        _, names = input_structure(model)
    else:
        specs = [
            tf.TensorSpec([None, *leaf.shape[1:]], leaf.dtype, name)
            for leaf, name in zip(kept.inputs, names, strict=True)
        ]
        inputs = specs[0] if len(specs) == 1 else specs
    examples = dict(zip(names, kept.inputs, strict=True)) if data else None
    given = measures.restored(entry.get("measures") or {})
    make = PictureKind if entry.get("name") == recorded.PICTURES else KerasKind
    return make(model, inputs, examples, kept.targets, given, explicit=True), {}, ""


def _reasoner(
    model: keras.Model,
    workdir: pathlib.Path,
    config: Mapping[str, Any],
    entry: Mapping[str, Any],
    prepared_dir: str | None,
    data: bool,
) -> tuple[Kind, dict[str, Any], str]:
    kept = recorded.read(workdir)
    kind = ReasonerKind(
        model,
        examples={PUZZLE: kept.inputs[0]} if data else None,
        targets=kept.targets,
        measures=measures.restored(entry.get("measures") or {}),
        explicit=True,
    )
    return kind, {}, ""


_KINDS: dict[str, Callable[..., tuple[Kind, dict[str, Any], str]]] = {
    recorded.LANGUAGE_MODEL: _language_model,
    recorded.EXAMPLES: _examples,
    recorded.PICTURES: _examples,
    recorded.REASONER: _reasoner,
}
