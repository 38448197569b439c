"""Writes a trained model as a SavedModel version that TensorFlow Serving loads.

python -m export.saved_model --workdir=runs/quickstart --output=runs/quickstart/export
"""

import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf
from absl import flags

from export import graph_checks, model_card, versions
from export import language_model_signatures as language_model
from tfdeq.models import LanguageModel
from trainers import program
from trainers.workdir import read_json

FLAGS = flags.FLAGS
VOCABULARY = "vocabulary.txt"
# Not in the card: the curves are long, and the configuration stands there already.
_LEFT_OUT = ("train", "config")


def export(
    model: keras.Model,
    output: str | os.PathLike,
    signatures: Mapping[str, tf.types.experimental.ConcreteFunction],
    *,
    version: int | None = None,
    card: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
) -> pathlib.Path:
    """Writes `output/<version>/` from signatures that were traced on a Keras model, atomically.

    Args:
        model: the model whose variables the signatures read.
        output: folder of the versions, made if missing; the server's model base path.
        signatures: name -> concrete function with named inputs that returns a dict of tensors.
        version: integer >= 0; None: the highest existing one + 1.
        card: entries of `assets.extra/model_card.json`, beside or over the general ones.
        files: name -> text of further files under `assets.extra/`.

    Returns:
        The path of the version.

    Raises:
        export.versions.VersionExistsError: the version is there; nothing was touched.
        ValueError: a signature that writes variables, calls Python or is jit-compiled.
    """
    for name, function in signatures.items():
        found = graph_checks.problems(function)
        if found:
            raise ValueError(
                f"The signature {name!r} cannot be served: {'; '.join(found)}. Trace it for "
                "inference (training=False), of TensorFlow operations only, without jit_compile."
            )
    extra = {
        model_card.NAME: lambda number: model_card.to_json(
            {
                **model_card.general_card(number, model_card.signature_card(signatures)),
                **(card or {}),
            }
        ),
        **{name: (lambda _, text=text: text) for name, text in (files or {}).items()},
    }
    return versions.publish(output, _writer(model, signatures, extra), version)


def export_language_model(
    model: LanguageModel,
    output: str | os.PathLike,
    *,
    version: int | None = None,
    card: Mapping[str, Any] | None = None,
    vocabulary: str | None = None,
) -> pathlib.Path:
    """Writes a language model with the signatures `serving_default` and `score`, atomically.

    Args:
        model: a built `tfdeq.models.LanguageModel`.
        output: folder of the versions, made if missing.
        version: integer >= 0; None: the highest existing one + 1.
        card: further entries of the model card: data set, metrics, ...
        vocabulary: text of a file of the words by id, one a line; kept as
            `assets.extra/vocabulary.txt`.

    Returns:
        The path of the version.

    Raises:
        export.versions.VersionExistsError: the version is there; nothing was touched.
        TypeError: for another kind of model.
        ValueError: a vocabulary of another size than the model's.

    Example:
        >>> import tempfile
        >>> model = LanguageModel(vocabulary_size=7, sequence_length=6, width=8, heads=2)
        >>> model.build((None, 6))
        >>> export_language_model(model, tempfile.mkdtemp()).name
        '1'
    """
    signatures = language_model.language_model_signatures(model)
    words = None if vocabulary is None else len(vocabulary.splitlines())
    if words is not None and words != model.vocabulary_size:
        raise ValueError(
            f"The vocabulary has {words:,} lines; the model has {model.vocabulary_size:,} token "
            f"ids. Give the {VOCABULARY} of the run that trained the model."
        )
    solver = model.equilibrium.solver
    described = {
        "signatures": model_card.signature_card(
            signatures, language_model.INPUTS, language_model.OUTPUTS
        ),
        "status": language_model.STATUS_TEXTS,
        "sequence_length": model.sequence_length,
        "vocabulary": {
            "size": model.vocabulary_size,
            "file": None if vocabulary is None else VOCABULARY,
        },
        "own_tolerance": solver.tolerance,
        "own_max_steps": solver.max_steps,
        "model": keras.saving.serialize_keras_object(model)["config"],
        **(card or {}),
    }
    files = {} if vocabulary is None else {VOCABULARY: vocabulary}
    return export(model, output, signatures, version=version, card=described, files=files)


def load_run(workdir: str | os.PathLike) -> tuple[LanguageModel, dict[str, Any], str | None]:
    """Reads what `trainers.language_model` left in a folder.

    Returns:
        The model, the model card's entries about the run, and the vocabulary's text or None.

    Raises:
        FileNotFoundError: no such folder, or no model in it yet.
        ValueError: a file that cannot be read as what it should be, or another kind of model.
    """
    workdir = pathlib.Path(workdir)
    path = workdir / "model.keras"
    if not path.is_file():
        raise FileNotFoundError(
            f"No model in {str(workdir)!r}: {str(path)!r} is missing. Train one first: "
            f"{program.command('trainers', 'language_model')} --workdir={workdir}"
        )
    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:  # zip, JSON and weight errors have no common class
        raise ValueError(
            f"{str(path)!r} cannot be read as a Keras model: {error}. Delete it and train again: "
            f"{program.command('trainers', 'language_model')} --workdir={workdir}"
        ) from error
    if not isinstance(model, LanguageModel):
        raise ValueError(
            f"{str(path)!r} holds a {type(model).__name__}; this program exports "
            "tfdeq.models.LanguageModel. Use export.saved_model.export for a model of your own."
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
        "source": {"path": str(path), "sha256": _sha256(path)},
    }
    return model, card, vocabulary


def _writer(
    model: keras.Model,
    signatures: Mapping[str, tf.types.experimental.ConcreteFunction],
    extra: Mapping[str, Callable[[int], str]],
) -> Callable[[pathlib.Path, int], None]:
    def write(folder: pathlib.Path, number: int) -> None:
        module = tf.Module()
        module.weights = [variable.value for variable in model.variables]
        tf.saved_model.save(module, str(folder), signatures=dict(signatures))
        (folder / "assets.extra").mkdir()
        for name, text in extra.items():
            (folder / "assets.extra" / name).write_text(text(number), encoding="utf-8")

    return write


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_there(output: str, version: int, workdir: str) -> bool:
    """Says so if a version is there, and whether it was made from the workdir's model."""
    path = versions.existing_versions(output).get(version)
    if path is None:
        return False
    card = read_json(path / "assets.extra" / model_card.NAME) or {}
    model = pathlib.Path(workdir) / "model.keras"
    made_from = card.get("source", {}).get("sha256")
    changed = model.is_file() and made_from is not None and made_from != _sha256(model)
    note = " It was made from another model file; export another version for this one."
    print(f"Version {version} is there already: {path}.{note if changed else ''}")
    return True


def main() -> None:
    if FLAGS.skip_existing and _is_there(FLAGS.output, FLAGS.version, FLAGS.workdir):
        return
    versions.check_free(FLAGS.output, FLAGS.version)  # before the model is loaded
    model, card, vocabulary = load_run(FLAGS.workdir)
    path = export_language_model(
        model, FLAGS.output, version=FLAGS.version, card=card, vocabulary=vocabulary
    )
    print(f"Exported {path}.")
    print(
        f"Verify it: {program.command('export', 'verify')} --workdir={FLAGS.workdir} --model={path}"
    )


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder that trainers.language_model wrote.")
    flags.DEFINE_string("output", None, "Folder of the versions; made if missing.")
    flags.DEFINE_integer(
        "version", None, "Version number. Default: the highest existing one + 1.", lower_bound=0
    )
    flags.DEFINE_bool(
        "skip_existing", False, "With --version: succeed without writing if it is there."
    )
    flags.mark_flags_as_required(["workdir", "output"])
    flags.register_multi_flags_validator(
        ["version", "skip_existing"],
        lambda values: values["version"] is not None or not values["skip_existing"],
        "--skip_existing needs --version: which one may be there already?",
    )


def run() -> None:
    """Entry point of the console script."""
    define_flags()
    program.run(main)


if __name__ == "__main__":
    run()
