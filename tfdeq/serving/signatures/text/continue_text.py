"""`continue_text`: texts of any length in several calls, each with the memory from the last one."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeq import Status
from tfdeq.models.token_model import TokenModel
from tfdeq.serving.signatures import carried
from tfdeq.serving.signatures.signature import CONVERGENCE, Solving
from tfdeq.serving.signatures.text.text_signature import Input, TextSignature
from tfdeq.serving.signatures.text_requests import (
    LOG_PROBABILITIES,
    checked,
    log_likelihood,
    next_log_probabilities,
    solve,
    where_rows,
)

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


class ContinueText(TextSignature):
    """`serving_default` and `score` for texts that continue where an earlier call ended.

    The memory's tensors are inputs and outputs with the same names, such as `memory_key`: a client
    passes what it received to the next call. Each example has its own memory, and gets the one after
    its own last token, independent of its padding.

    An example with an invalid memory or text is marked as invalid and keeps its memory, or zeros if
    that is not finite. The same holds for an example whose outputs are not finite; it has the status
    NON_FINITE and zeros as outputs.
    """

    name = "continue_text"
    models = "language models that remember"

    def fits(self, model):
        return model.remembers

    def inputs(self, model):
        layout = _layout(model)
        meanings = carried.meanings(layout, _TAKEN)
        return [Input(leaf.spec, meanings[leaf.name]) for leaf in keras.tree.flatten(layout)]

    def outputs(self, model):
        return {**_OUTPUTS, **carried.meanings(_layout(model), _RETURNED)}

    def taken(self, model):
        return "the memory: `memory_key`, …"

    def returned(self, model):
        return "`log_probabilities` [B, V], `log_likelihood` [B, T], the next memory under the same names"

    def answer(self, model, given, solving):
        return _answer(model, _layout(model), given, solving)

    def invalid(self, output, given):
        return given.get(output, 0)  # the memory in the request

    def warm_up_inputs(self, model, lengths):
        return empty_memory(model, len(lengths))

    def asked_inputs(self, model, count):
        # After a text that is shorter than the model's memory.
        earlier = np.arange(3)[None] % model.vocabulary_size
        *_, memory = model(earlier, memory=model.initial_memory(1), training=False)
        return {
            name: np.repeat(value, count, axis=0)
            for name, value in named_memory(model, memory).items()
        }

    def reference(self, keras_model, given):
        model = keras_model.model
        (read,) = keras_model.read(given, memory=model_memory(model, given))
        after = named_memory(model, read.memory)
        return {
            **{name: value[0] for name, value in after.items()},
            "log_probabilities": read.log_probabilities[-1],
            "log_likelihood": read.log_likelihood(given["tokens"][0]),
            **read.convergence,
        }


def empty_memory(model: TokenModel, count: int) -> dict[str, np.ndarray]:
    """Returns the memory at the beginning of texts, by served names.

    Args:
        model: a built model with a carried memory. count: B.

    Example:
        >>> from tfdeq.models import LanguageModel
        >>> from tfdeq.cells import TransformerCell
        >>> model = LanguageModel(7, sequence_length=6, cell=TransformerCell(8, 2, 6, span=4))
        >>> {name: value.shape for name, value in empty_memory(model, 1).items()}
        {'memory_key': (1, 2, 3, 4), 'memory_length': (1,), 'memory_value': (1, 2, 3, 4)}
    """
    return carried.zeros(_layout(model), count)


def named_memory(model: TokenModel, memory: Any) -> dict[str, np.ndarray]:
    """Returns the Keras model's memory by served names."""
    return {name: value.numpy() for name, value in carried.served(_layout(model), memory).items()}


def model_memory(model: TokenModel, named: dict[str, Any]) -> Any:
    """Returns the memory for the Keras model, the inverse of `named_memory`."""
    return carried.in_model(_layout(model), named)


def _layout(model: TokenModel) -> Any:
    """Returns the memory's structure as a nest of `carried.Leaf`."""
    return carried.layout_of("memory", lambda: model.initial_memory(1))


def _answer(model, layout, given, solving: Solving) -> dict[str, tf.Tensor]:
    received = {leaf.name: given[leaf.name] for leaf in keras.tree.flatten(layout)}
    finite = carried.finite_rows(received)
    received = where_rows(finite, received, tf.nest.map_structure(tf.zeros_like, received))
    memory = carried.in_model(layout, received)
    text = checked(model, given, also=finite & _possible_rows(model, received))
    solved = solve(model, text, given, solving, memory=memory)
    after = carried.served(layout, solved.memory)
    width = tf.shape(given["tokens"])[1]
    read = {
        "log_probabilities": next_log_probabilities(model, text, solved.z),
        "log_likelihood": log_likelihood(model, text, solved.z, width),
    }
    finite = carried.finite_rows({**read, **after})
    found = solved.convergence
    return {
        **where_rows(finite, read, tf.nest.map_structure(tf.zeros_like, read)),
        **where_rows(finite & text.answered, after, received),
        "residual": tf.where(finite, found["residual"], tf.float32.max),
        "steps": found["steps"],
        "status": tf.where(finite, found["status"], int(Status.NON_FINITE)),
    }


def _possible_rows(model: TokenModel, memory: dict[str, tf.Tensor]) -> tf.Tensor:
    """[B]: whether a memory's integers, the numbers of filled places, are valid."""
    part = model.network if model.equilibrium is None else model.cell
    most = (getattr(part, "span", None) or tf.int32.max) - 1
    rows = tf.fill(tf.shape(next(iter(memory.values())))[:1], True)
    for value in memory.values():
        if value.dtype.is_integer and value.shape.rank == 1:
            rows &= (value >= 0) & (value <= most)
    return rows
