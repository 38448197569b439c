"""The kind of a run: the entry `kind` of metrics.json, and the examples stored with it."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from tfdeq.programs.workdir import write_atomically
from tfdeq.runs import measures

LANGUAGE_MODEL, EXAMPLES, REASONER = "language_model", "examples", "reasoner"
PICTURES = "pictures"
FILE = "examples.npz"
# The words of a language model by id, one per line.
VOCABULARY = "vocabulary.txt"
# Number of test examples that a run keeps for its export.
KEPT = 64


class Kept(NamedTuple):
    """Examples of the test data."""

    inputs: list[np.ndarray]  # [N, …], the model's input flattened by `keras.tree.flatten`
    targets: Any  # [N, …] or a dict of such


def language_model() -> dict[str, Any]:
    """Returns the entry of a run of `tfdeq.training.text`, whose text can be read again."""
    return {"name": LANGUAGE_MODEL}


def examples(
    given: Mapping[str, measures.Given],
    model: keras.Model,
    kept: Kept,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Returns the entry of a run of examples with targets.

    Args:
        given: name -> measure of the model's output.
        model: a built model.
        kept: some examples.
        names: names of the model's inputs, if it is not a functional model.
    """
    few = Kept([leaf[:2] for leaf in kept.inputs], _rows(kept.targets, slice(2)))
    outputs = model(packed(model, few.inputs), training=False)
    return {
        "name": EXAMPLES,
        "inputs": None if names is None else list(names),
        "measures": measures.described(given, few.targets, outputs),
    }


def reasoner(given: Mapping[str, measures.Given], model: keras.Model, kept: Kept) -> dict[str, Any]:
    """Returns the entry of a run of a `tfdeq.models.Reasoner`; arguments as for `examples`."""
    return {**examples(given, model, kept, names=["puzzle"]), "name": REASONER}


def pictures(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entry of a run of examples whose only input are pictures [N, H, W, C] in [0, 1]."""
    return {**entry, "name": PICTURES}


def packed(model: keras.Model, leaves: Sequence[Any]) -> Any:
    """Returns leaves as the nest that a model takes; if it is not functional, the only leaf or a list."""
    if isinstance(model, keras.Sequential) or not getattr(model, "inputs", None):
        return leaves[0] if len(leaves) == 1 else list(leaves)
    return keras.tree.pack_sequence_as(model.input, list(leaves))


def keep(inputs: Any, targets: Any) -> Kept:
    """Returns the first examples of a split, as many as a run keeps."""
    leaves = [np.asarray(leaf)[:KEPT] for leaf in keras.tree.flatten(inputs)]
    return Kept(leaves, _rows(targets, slice(KEPT)))


def write(workdir: str | os.PathLike, kept: Kept) -> None:
    """Writes the examples into a run's folder."""
    arrays = {f"input_{place}": leaf for place, leaf in enumerate(kept.inputs)}
    named = kept.targets if isinstance(kept.targets, Mapping) else {"": kept.targets}
    arrays.update({f"target_{name}": np.asarray(leaf) for name, leaf in named.items()})

    def save(name: str) -> None:
        with open(name, "wb") as file:
            np.savez_compressed(file, **arrays)

    write_atomically(os.path.join(workdir, FILE), save)


def read(workdir: str | os.PathLike) -> Kept:
    """Reads the examples that `write` wrote.

    Raises:
        FileNotFoundError: if the run has no examples.
    """
    path = os.path.join(workdir, FILE)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"No examples in {str(workdir)!r}: {path!r} is missing. Train to the end, with this release."
        )
    with np.load(path, allow_pickle=False) as file:
        inputs = [
            file[f"input_{place}"] for place in range(len(file.files)) if f"input_{place}" in file
        ]
        named = {
            name.removeprefix("target_"): file[name]
            for name in file.files
            if name.startswith("target_")
        }
    return Kept(inputs, named[""] if set(named) == {""} else named)


def _rows(targets: Any, rows: slice) -> Any:
    if isinstance(targets, Mapping):
        return {name: np.asarray(leaf)[rows] for name, leaf in targets.items()}
    return np.asarray(targets)[rows]
