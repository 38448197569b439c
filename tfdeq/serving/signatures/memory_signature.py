"""`continue_text`: texts of any length, call by call, each with the memory that the last one returned."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeq import Status
from tfdeq.models import LanguageModel
from tfdeq.models.token_model import TokenModel
from tfdeq.serving.signatures.signature import (
    CONVERGENCE,
    SETTING_SPECS,
    SETTINGS,
    Signature,
    Solving,
    trace,
)
from tfdeq.serving.signatures.text_requests import (
    LOG_PROBABILITIES,
    TEXT,
    TEXT_SPECS,
    checked,
    log_likelihood,
    next_log_probabilities,
    solve,
    where_rows,
)

NAME = "continue_text"
_OUTPUTS = {
    **LOG_PROBABILITIES,
    "log_likelihood": (
        "[B, T] float32, natural log of p(token t | all tokens before t, those of earlier calls "
        "too); 0 at t = 0, whose log p is in the last call's log_probabilities, and at or behind the "
        "example's length."
    ),
    **CONVERGENCE,
}
_TAKEN = (
    "what the last call returned under this name, of the same text; zeros, all over the memory, "
    "where the text begins"
)
_RETURNED = "for the next call: the memory after the example's own last token"


@dataclasses.dataclass(frozen=True)  # no tuple, which would be a nest itself
class _Leaf:
    """One tensor of a memory, as it is served."""

    name: str
    spec: tf.TensorSpec  # [B, …], half precision as float32
    dtype: tf.DType  # the model's own


def continue_text(model: TokenModel, solving: Solving, jit_compile: bool = False) -> Signature:
    """Traces `continue_text` of a built model that remembers.

    The memory's tensors are inputs and outputs of the same names, such as `memory_key`: a client
    feeds back what it received, call after call. Each example has its own memory, and gets the one
    after its own last token, whatever it is padded with.

    An example whose memory cannot be used, or whose text cannot, is marked invalid and keeps the
    memory that it came with; zeros, where that is not finite. So does one whose outputs are not
    finite, which has the status NON_FINITE and outputs of 0.
    """
    layout = _layout(model)

    def function(**given):
        return _answer(model, layout, given, solving)

    leaves = keras.tree.flatten(layout)
    specs = {leaf.name: leaf.spec for leaf in leaves}
    return Signature(
        trace(function, {**TEXT_SPECS, **specs, **SETTING_SPECS}, jit_compile),
        {**TEXT, **_meanings(leaves, _TAKEN), **SETTINGS},
        {**_OUTPUTS, **_meanings(leaves, _RETURNED)},
    )


def empty_memory(model: TokenModel, count: int) -> dict[str, np.ndarray]:
    """Returns the memory of texts that begin, by the names that it is served under.

    Args:
        model: built, one that remembers. count: B.

    Example:
        >>> from tfdeq.models import LanguageModel
        >>> model = LanguageModel(vocabulary_size=7, sequence_length=6, width=8, heads=2, span=4)
        >>> {name: value.shape for name, value in empty_memory(model, 1).items()}
        {'memory_key': (1, 2, 3, 4), 'memory_length': (1,), 'memory_value': (1, 2, 3, 4)}
    """
    return {
        leaf.name: np.zeros([count, *leaf.spec.shape[1:]], leaf.spec.dtype.as_numpy_dtype)
        for leaf in keras.tree.flatten(_layout(model))
    }


def named_memory(model: TokenModel, memory: Any) -> dict[str, np.ndarray]:
    """Returns a memory that the Keras model returned, by the names that it is served under."""
    leaves, values = keras.tree.flatten(_layout(model)), keras.tree.flatten(memory)
    return {
        leaf.name: tf.cast(value, leaf.spec.dtype).numpy()
        for leaf, value in zip(leaves, values, strict=True)
    }


def model_memory(model: TokenModel, named: dict[str, Any]) -> Any:
    """Returns the memory that the Keras model takes: what `named_memory` was made of."""
    layout = _layout(model)
    return keras.tree.map_structure(lambda leaf: tf.cast(named[leaf.name], leaf.dtype), layout)


def _layout(model: TokenModel) -> Any:
    """The memory's structure, of `_Leaf`."""
    leaves = []
    for path, value in keras.tree.flatten_with_path(model.initial_memory(1)):
        name = "_".join(["memory", *map(str, path)])
        dtype = tf.as_dtype(value.dtype)
        served = tf.float32 if dtype in (tf.float16, tf.bfloat16) else dtype
        spec = tf.TensorSpec([None, *value.shape[1:]], served, name)
        leaves.append(_Leaf(name, spec, dtype))
    return keras.tree.pack_sequence_as(model.initial_memory(1), leaves)


def _meanings(leaves: list[_Leaf], meaning: str) -> dict[str, str]:
    shown = {}
    for leaf in leaves:
        shape = ", ".join(["B", *map(str, leaf.spec.shape[1:])])
        shown[leaf.name] = f"[{shape}] {leaf.spec.dtype.name}: {meaning}."
    return shown


def _answer(model, layout, given, solving: Solving) -> dict[str, tf.Tensor]:
    leaves = keras.tree.flatten(layout)
    received = {leaf.name: given[leaf.name] for leaf in leaves}
    finite = _finite_rows(received)
    received = where_rows(finite, received, tf.nest.map_structure(tf.zeros_like, received))
    memory = keras.tree.map_structure(lambda leaf: tf.cast(received[leaf.name], leaf.dtype), layout)
    text = checked(model, given, also=finite & _possible_rows(model, received))
    solved = solve(model, text, given, solving, memory=memory)
    after = {
        leaf.name: tf.cast(value, leaf.spec.dtype)
        for leaf, value in zip(leaves, keras.tree.flatten(solved.memory), strict=True)
    }
    width = tf.shape(given["tokens"])[1]
    read = {
        "log_probabilities": next_log_probabilities(model, text, solved.z),
        "log_likelihood": log_likelihood(model, text, solved.z, width),
    }
    finite = _finite_rows({**read, **after})
    found = solved.convergence
    return {
        **where_rows(finite, read, tf.nest.map_structure(tf.zeros_like, read)),
        **where_rows(finite & text.answered, after, received),
        "residual": tf.where(finite, found["residual"], tf.float32.max),
        "steps": found["steps"],
        "status": tf.where(finite, found["status"], int(Status.NON_FINITE)),
    }


def _finite_rows(tensors: dict[str, tf.Tensor]) -> tf.Tensor:
    """[B]: whether all of an example's numbers are finite."""
    floating = [value for value in tensors.values() if value.dtype.is_floating]
    rows = [
        tf.reduce_all(tf.math.is_finite(value), axis=range(1, value.shape.rank))
        for value in floating
    ]
    return tf.reduce_all(tf.stack(rows), axis=0)


def _possible_rows(model: TokenModel, memory: dict[str, tf.Tensor]) -> tf.Tensor:
    """[B]: whether a memory's whole numbers, how many places are taken, can be."""
    part = model.cell if isinstance(model, LanguageModel) else model.network
    most = (getattr(part, "span", None) or tf.int32.max) - 1
    rows = tf.fill(tf.shape(next(iter(memory.values())))[:1], True)
    for value in memory.values():
        if value.dtype.is_integer and value.shape.rank == 1:
            rows &= (value >= 0) & (value <= most)
    return rows
