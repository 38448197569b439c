"""What `trainers.language_model` left in its folder, as far as an export needs it."""

import os
import pathlib
from typing import Any

import keras
import numpy as np

# Keras finds a model's classes by name among those that were imported.
import tfdeq.baselines  # noqa: F401
from tfdeq.data.text import registry
from tfdeq.models import ExplicitLanguageModel, LanguageModel
from tfdeq.models.token_model import TokenModel
from tfdeq.programs import commands
from tfdeq.programs.paths import expanded
from tfdeq.programs.workdir import read_json
from tfdeq.serving.versions import manifest, model_card, publishing

VOCABULARY = "vocabulary.txt"
# Not in the card: the curves are long, and the configuration stands there already.
_LEFT_OUT = ("train", "config")


def load_run(workdir: str | os.PathLike) -> tuple[TokenModel, dict[str, Any], str | None]:
    """Reads what `trainers.language_model` left in a folder.

    Returns:
        The model, the model card's entries about the run, and the vocabulary's text or None.

    Raises:
        FileNotFoundError: no such folder, or no model in it yet.
        ValueError: a file that cannot be read as what it should be, or another kind of model.
    """
    workdir = expanded(workdir)
    path = workdir / "model.keras"
    if not path.is_file():
        raise FileNotFoundError(
            f"No model in {str(workdir)!r}: {str(path)!r} is missing. Train one first: "
            f"{commands.command('trainers.language_model')} --workdir={workdir}"
        )
    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:  # zip, JSON and weight errors have no common class
        raise ValueError(
            f"{str(path)!r} cannot be read as a Keras model: {error}. Delete it and train again: "
            f"{commands.command('trainers.language_model')} --workdir={workdir}"
        ) from error
    if not isinstance(model, LanguageModel | ExplicitLanguageModel):
        raise ValueError(
            f"{str(path)!r} holds a {type(model).__name__}; this program exports "
            "language models of tfdeq.models. Use tfdeq.serving.export for a model of your own."
        )
    config = read_json(workdir / "config.json") or {}
    metrics = read_json(workdir / "metrics.json") or {}
    text = workdir / VOCABULARY
    vocabulary = text.read_text(encoding="utf-8") if text.is_file() else None
    card = {
        "unit": "word" if vocabulary is not None else "byte",
        "dataset": config.get("dataset"),
        "flags": config,
        "metrics": {name: value for name, value in metrics.items() if name not in _LEFT_OUT},
        "source": {"path": str(path), "sha256": manifest.sha256(path)},
    }
    return model, card, vocabulary


def tokens_of_test(
    config: dict[str, Any], vocabulary_size: int, prepared_dir: str | None
) -> tuple[np.ndarray, str]:
    """Returns the test split's tokens, and "" or a note that the text is not the trainer's."""
    if "dataset" not in config:
        raise ValueError(
            "The run's config.json is missing, or names no data set, as that of trainers.copy_memory, "
            "which makes its own examples. Export such a run with --notext."
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
            f"{vocabulary_size:,}: config.json and model.keras are not of one run."
        )
    trained_on = config.get("data_fingerprint", loaded.fingerprint)
    note = "" if trained_on == loaded.fingerprint else "Not the text that the model was trained on."
    return loaded.test, note


def windows_of(stream: np.ndarray, length: int, count: int) -> np.ndarray:
    """Returns [count, T] int32 windows spread evenly over a token stream, T = min(length, its size)."""
    length = min(length, len(stream))
    starts = np.arange(count) * (len(stream) - length) // max(count - 1, 1)
    return np.stack([stream[start : start + length] for start in starts]).astype(np.int32)


def already_exported(output: str, version: int | None, workdir: str) -> str | None:
    """Returns a line that says that a version is there, also if of another model file; None if not."""
    path = publishing.existing_versions(output).get(version)
    if path is None:
        return None
    card = read_json(path / model_card.FOLDER / model_card.NAME) or {}
    model = pathlib.Path(workdir) / "model.keras"
    made_from = card.get("source", {}).get("sha256")
    changed = model.is_file() and made_from is not None and made_from != manifest.sha256(model)
    note = " It was made from another model file; export another version for this one."
    return f"Version {version} is there already: {path}.{note if changed else ''}"
