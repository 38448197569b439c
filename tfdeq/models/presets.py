"""Presets: folders with a model's configuration, its weights and its tokenizer, in KerasHub's layout."""

import datetime
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, Self

import keras

from tfdeq.models.tokenizers import Tokenizer
from tfdeq.programs.paths import expanded
from tfdeq.version import __version__

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
TOKENIZER, ASSETS = "tokenizer.json", pathlib.Path("assets", "tokenizer")
# The presets that come with tfdeq, a folder each.
SHIPPED = pathlib.Path(__file__).parent / "shipped"


class FromPreset:
    """A Keras model that is saved as a preset, and loaded from one.

    Attributes:
        tokenizer: from text to token ids and back; None: not known.
    """

    tokenizer: Tokenizer | None = None

    @classmethod
    def from_preset(
        cls, preset: str | os.PathLike, load_weights: bool = True, **settings: Any
    ) -> Self:
        """Returns the model of a preset, with its weights and its tokenizer.

        Args:
            preset: the name of a preset that comes with tfdeq, see `tfdeq.models.list_presets`, or a
                folder that `save_to_preset` wrote.
            load_weights: False: the weights are new.
            **settings: arguments of the model's class, instead of those that were saved, for example
                solver.

        Returns:
            The built model.

        Raises:
            ValueError: no such preset; a model of another class; a file that cannot be read.
            FileNotFoundError: a file of the preset is missing.

        Example:
            >>> model = tfdeq.models.LanguageModel.from_preset("tfdeq_bytes_small")
            >>> model.tokenizer.encode("def ").tolist()
            [100, 101, 102, 32]
        """
        folder = _folder_of(preset)
        model = _deserialized(folder / CONFIG, settings)
        if not isinstance(model, cls):
            raise ValueError(
                f"The preset {str(preset)!r} holds a {type(model).__name__}, not a {cls.__name__}. Use "
                f"{type(model).__name__}.from_preset."
            )
        if load_weights:
            _load_weights(model, folder / WEIGHTS)
        if (folder / TOKENIZER).is_file():
            model.tokenizer = _deserialized(folder / TOKENIZER)
            model.tokenizer.restore(_assets(folder, model.tokenizer.ASSETS))
        return model

    def save_to_preset(
        self,
        folder: str | os.PathLike,
        overwrite: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes the model as a preset. The folder appears when it is complete.

        It has config.json, model.weights.h5, metadata.json and, if the model has a tokenizer,
        tokenizer.json with the files in assets/tokenizer/.

        Args:
            folder: where to; the folders above it are made if they are missing.
            overwrite: whether a preset that is there is replaced, with all that its folder holds.
            metadata: further entries of metadata.json, beside the versions of Keras and tfdeq, the number
                of parameters and the date.

        Raises:
            ValueError: the model is not built, or its tokenizer has another number of ids.
            FileExistsError: there is a folder already; with overwrite: one that is no preset.
            OSError: it cannot be written.
        """
        # Here, since it needs a POSIX system, and what loads and trains a model does not.
        from tfdeq.programs.whole_folder import write_whole

        if not self.built:
            raise ValueError(
                f"{self.name!r} has no weights yet. Call it, or build it with the shape of its input, before "
                "it is saved."
            )
        self._check_tokenizer()
        folder = expanded(folder)
        if overwrite and folder.exists() and not (folder / CONFIG).is_file():
            raise FileExistsError(
                f"{str(folder)!r} is there, and is no preset, since it has no {CONFIG}. Nothing was changed. "
                "Name another folder."
            )
        write_whole(folder, lambda new: _write(self, new, metadata or {}), replace=overwrite)

    def _check_tokenizer(self) -> None:
        own = getattr(self, "vocabulary_size", None)
        if self.tokenizer is not None and self.tokenizer.vocabulary_size != own:
            raise ValueError(
                f"The tokenizer has {self.tokenizer.vocabulary_size} token ids, the model {own}. Set the "
                "tokenizer that the model was trained with, or None."
            )


def list_presets() -> dict[str, dict[str, Any]]:
    """Returns name -> metadata of the presets that come with tfdeq.

    Example:
        >>> sorted(list_presets())
        ['tfdeq_bytes_small']
    """
    return {path.parent.name: _read(path) for path in sorted(SHIPPED.glob(f"*/{METADATA}"))}


def _folder_of(preset: str | os.PathLike) -> pathlib.Path:
    """The folder of a preset; a name of one that comes with tfdeq goes before a folder."""
    shipped = list_presets()
    if preset in shipped:
        return SHIPPED / preset
    folder = expanded(preset)
    if not folder.is_dir():
        raise ValueError(
            f"{str(preset)!r} is neither a folder nor the name of a preset. Known presets: "
            f"{', '.join(shipped)}. Name one of them, or a folder that save_to_preset wrote."
        )
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{str(folder)!r} is no preset: {name} is missing. Name a folder that save_to_preset wrote."
            )
    return folder


def _assets(folder: pathlib.Path, names: Iterable[str]) -> dict[str, str]:
    for name in names:
        if not (folder / ASSETS / name).is_file():
            raise FileNotFoundError(
                f"{str(folder)!r} is no complete preset: {ASSETS / name} is missing. Write it again."
            )
    return {name: (folder / ASSETS / name).read_text(encoding="utf-8") for name in names}


def _deserialized(path: pathlib.Path, settings: Mapping[str, Any] | None = None) -> Any:
    config = _read(path)
    try:
        config["config"] = {**config["config"], **(settings or {})}
        return keras.saving.deserialize_keras_object(config)
    except Exception as error:  # Keras has no common class for what is wrong in a configuration
        raise ValueError(
            f"Keras cannot make an object of {str(path)!r}: {error} Import the module of your own classes "
            "before, and register them with keras.saving.register_keras_serializable."
        ) from error


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as a JSON object: {error}. Write the preset again."
        ) from error


def _load_weights(model: keras.Model, path: pathlib.Path) -> None:
    try:
        model.load_weights(path)
    except Exception as error:  # HDF5, shapes and names have no common class
        raise ValueError(
            f"{str(path)!r} does not hold the weights of the model in {CONFIG}: {error} Write the preset "
            "again, or pass no settings that change the weights' shapes."
        ) from error


def _write(model: keras.Model, folder: pathlib.Path, metadata: Mapping[str, Any]) -> None:
    _dump(folder / CONFIG, keras.saving.serialize_keras_object(model))
    model.save_weights(folder / WEIGHTS)
    if model.tokenizer is not None:
        _dump(folder / TOKENIZER, keras.saving.serialize_keras_object(model.tokenizer))
        for name, text in model.tokenizer.assets().items():
            (folder / ASSETS).mkdir(parents=True, exist_ok=True)
            (folder / ASSETS / name).write_text(text, encoding="utf-8", newline="\n")
    general = {
        "keras_version": keras.version(),
        "tfdeq_version": __version__,
        "parameter_count": model.count_params(),
        "date_saved": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d@%H:%M:%S"),
    }
    _dump(folder / METADATA, {**general, **metadata})


def _dump(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    # As KerasHub does: how a model was compiled is no part of it.
    kept = {name: entry for name, entry in value.items() if name != "compile_config"}
    path.write_text(json.dumps(kept, indent=4) + "\n", encoding="utf-8")
