"""A Keras model's state as Keras saves it, layer by layer, with the layers' own methods.

A value that is a variable of the SavedModel is stored as its number there, not written twice. Other
values, such as a merged LoRA kernel or a vocabulary, are written separately. A layer that computes
something from its weights (such as the mean of a Normalization layer) does so in its own
`load_own_variables`.
"""

import json
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

# The two traversals of a model that keras.saving.save_model and load_model use. Keras has no public
# name for them; tests/serving/versions/loading_layers_test.py compares their results with .keras
# files.
from keras.src.saving import saving_lib

# Under assets.extra.
FOLDER = "keras_state"
_INDEX, _ARRAYS, _ASSETS = "index.json", "arrays.npz", "assets"

# A layer's place in its model, in Keras's notation -> name -> value: a Keras variable or an array.
Variables = dict[str, dict[str, Any]]


class State(NamedTuple):
    """The state of a model, which can be restored into another model of the same structure."""

    variables: Variables  # the values that layers save
    files: dict[str, bytes]  # place/name -> content of the files that layers write
    others: list[Any]  # variables that no layer saves: states of seeds, metrics, LoRA's factors


class _Store(saving_lib.NpzIOStore):
    """A Keras store that keeps a layer's values in memory."""

    def __init__(self, contents: Variables):
        self.contents = contents

    def make(self, path: str, metadata: Any = None) -> dict[str, Any]:
        return self.contents.setdefault(path, {})

    def get(self, path: str) -> dict[str, Any]:
        return dict(self.contents.get(path, {}))

    def has_path(self, path: str) -> bool:
        return any(place == path or place.startswith(f"{path}/") for place in self.contents)


class _Assets(saving_lib.DiskIOStore):
    """A Keras store that writes its files to a given folder."""

    def __init__(self, folder: pathlib.Path):
        self.mode, self.archive, self.tmp_dir = None, None, None
        self.root_path = self.working_dir = str(folder.absolute())


class _Kept(NamedTuple):
    """The place where a value is stored."""

    weight: int | None  # its number among the SavedModel's weights
    array: str | None  # else its name in the file of arrays
    dtype: str
    shape: list[int]


def collect(model: keras.Model) -> State:
    """Returns a model's state, without that of its optimiser."""
    variables: Variables = {}
    with tempfile.TemporaryDirectory(prefix="tfdeq-export-") as name:
        folder = pathlib.Path(name)
        saving_lib._save_state(model, _Store(variables), _Assets(folder), "", _optimizers(model))
        files = _files_in(folder)
    variables = {place: values for place, values in variables.items() if values}
    saved = {id(value) for values in variables.values() for value in values.values()}
    others = [variable for variable in model.variables if id(variable) not in saved]
    return State(variables, files, others)


def restore(model: keras.Model, state: State) -> None:
    """Makes a model's layers load the state that `collect` returned for another model.

    Raises:
        ValueError: for a model with a different structure.
    """
    failed: set[int] = set()
    errors: dict[int, tuple[Any, Exception]] = {}
    with tempfile.TemporaryDirectory(prefix="tfdeq-export-") as name:
        folder = pathlib.Path(name)
        _write_files(state.files, folder)
        saving_lib._load_state(
            model,
            _Store(state.variables),
            _Assets(folder) if state.files else None,
            "",
            visited_saveables=_optimizers(model),
            failed_saveables=failed,
            error_msgs=errors,
        )
    if failed:
        layer, error = next(iter(errors.values()))
        raise ValueError(f"{getattr(layer, 'name', layer)!r} does not take what was saved: {error}")


def restore_others(own: State, state: State) -> bool:
    """Restores the variables that no layer saves, if both models have the same such variables.

    Args:
        own: those of the model to restore. state: state of the other model.
    """
    pairs = list(zip(own.others, map(to_numpy, state.others), strict=False))
    alike = len(own.others) == len(state.others) and all(
        (tuple(variable.shape), variable.dtype) == (value.shape, value.dtype.name)
        for variable, value in pairs
    )
    for variable, value in pairs if alike else ():
        variable.assign(value)
    return alike


def write(model: keras.Model, state: State, folder: pathlib.Path) -> None:
    """Writes the state that `collect` returned for a model with the variables `weights` of the SavedModel.

    Args:
        folder: the folder, which is created.
    """
    numbers = {id(variable): number for number, variable in enumerate(model.variables)}
    arrays: dict[str, np.ndarray] = {}

    def kept(value: Any) -> dict[str, Any]:
        number, key, array = numbers.get(id(value)), None, to_numpy(value)
        if number is None:
            key = str(len(arrays))
            # As bytes, because NumPy's files do not support dtypes such as bfloat16.
            arrays[key] = np.frombuffer(array.tobytes(), np.uint8)
        return _Kept(number, key, array.dtype.name, list(array.shape))._asdict()

    index = {
        "variables": {
            place: {name: kept(value) for name, value in values.items()}
            for place, values in state.variables.items()
        },
        "others": [kept(value) for value in state.others],
    }
    folder.mkdir()
    (folder / _INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    if arrays:
        np.savez(folder / _ARRAYS, **arrays)
    _write_files(state.files, folder / _ASSETS)


def read(folder: pathlib.Path, weights: Sequence[Any]) -> State:
    """Returns the state given to `write`, as arrays.

    Args:
        folder: the folder from `write`. weights: those of the SavedModel, in order.

    Raises:
        ValueError: for files that do not belong together.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        if (folder / _ARRAYS).is_file():
            with np.load(folder / _ARRAYS, allow_pickle=False) as file:
                arrays = dict(file)

        def value(described: dict[str, Any]) -> np.ndarray:
            return _value(_Kept(**described), weights, arrays)

        return State(
            {
                place: {name: value(described) for name, described in values.items()}
                for place, values in index["variables"].items()
            },
            _files_in(folder / _ASSETS),
            [value(described) for described in index["others"]],
        )
    except (OSError, IndexError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{str(folder)!r} does not fit the weights: {error}.") from error


def _value(kept: _Kept, weights: Sequence[Any], arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    if kept.weight is not None:
        value = np.asarray(weights[kept.weight])
    else:
        dtype = tf.dtypes.as_dtype(kept.dtype).as_numpy_dtype
        value = np.frombuffer(arrays[kept.array].tobytes(), dtype).reshape(kept.shape)
    if list(value.shape) != kept.shape or value.dtype.name != kept.dtype:
        raise ValueError(
            f"{kept.dtype} {kept.shape} was saved, {value.dtype.name} {list(value.shape)} is there"
        )
    return value


def _files_in(folder: pathlib.Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _write_files(files: Mapping[str, bytes], folder: pathlib.Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def flat(variables: Variables) -> Iterator[tuple[str, Any]]:
    """Yields "place/name" and value, sorted."""
    for place, values in sorted(variables.items()):
        for name, value in sorted(values.items()):
            yield f"{place}/{name}", value


def to_numpy(value: Any) -> np.ndarray:
    """Returns a Keras variable, a tensor or any array-like value as a NumPy array.

    Raises:
        ValueError: for values that are not numbers.
    """
    array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    if array.dtype.hasobject:
        raise ValueError(f"a {type(value).__name__} is no array of numbers")
    return array


def _optimizers(model: keras.Model) -> set[int]:
    """Returns the ids of the optimisers in a model, which Keras's traversals then skip as already visited."""
    layers = model._flatten_layers()
    return {id(layer.optimizer) for layer in layers if getattr(layer, "optimizer", None)}
