"""Functions shared by the signatures of language models: checked requests, states and readouts."""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdeq import Status
from tfdeq.models.token_model import TokenModel
from tfdeq.serving.signatures.signature import INVALID, STATUS_TEXTS, Solving, convergence, scope

TEXT = {
    "tokens": "[B, T] int32: token ids. What stands at or behind an example's length is ignored.",
    "lengths": "[B] int32: tokens of each example, 1 … min(T, sequence_length).",
}
TEXT_SPECS = {
    "tokens": tf.TensorSpec([None, None], tf.int32, "tokens"),
    "lengths": tf.TensorSpec([None], tf.int32, "lengths"),
}
LOG_PROBABILITIES = {
    "log_probabilities": "[B, V] float32, natural log: the token after the example's last one.",
}
EQUILIBRIUM = {
    "equilibrium": (
        "[B, T, d] float32: the equilibrium of each position; 0 at or behind the example's length."
    ),
}
LANGUAGE_STATUS_TEXTS = {
    **STATUS_TEXTS,
    str(INVALID): (
        "invalid: a length outside 1 … min(T, sequence_length), a token id outside 0 … V − 1, or a "
        "memory that is not finite or claims more places than there are. steps is 0, residual the "
        "largest float32, log_probabilities are −log V each, the memory is the one given (zeros, if "
        "that is not finite), everything else is 0, generated tokens are −1. Other examples of the "
        "batch are not affected."
    ),
}


class Text(NamedTuple):
    """A request's checked text: an invalid example has length 0 instead of causing an error for all."""

    tokens: tf.Tensor  # [B, T'] int32, T' = min(T, sequence_length), at least 1; 0 if not valid
    valid: tf.Tensor  # [B, T'] bool
    lengths: tf.Tensor  # [B] int32; 0 for invalid examples
    answered: tf.Tensor  # [B] bool


class Solved(NamedTuple):
    """A model's results for texts."""

    z: tf.Tensor  # [B, T', d], the states that the readout reads
    memory: Any  # after each example's own last token; None if none was given
    convergence: dict[str, tf.Tensor]  # residual, steps, status: [B]


def is_equilibrium(model: TokenModel) -> bool:
    """Whether a model's states come from a solve, so that a tolerance has an effect."""
    return model.equilibrium is not None and not model.explicit_steps


def checked(model: TokenModel, given: dict[str, tf.Tensor], also: tf.Tensor | None = None) -> Text:
    """Returns the text of a request.

    Args:
        also: [B] bool, an additional condition for examples that can be answered.
    """
    tokens, lengths = given["tokens"], given["lengths"]
    length = tf.shape(tokens)[1]
    inside = tf.sequence_mask(lengths, length)
    known = (tokens >= 0) & (tokens < model.vocabulary_size)
    answered = (lengths >= 1) & (lengths <= tf.minimum(length, model.sequence_length))
    answered &= tf.reduce_all(known | ~inside, axis=1)
    if also is not None:
        answered &= also
    lengths = tf.where(answered, lengths, 0)
    # At least one column, so that there is a last position; columns beyond the longest text are cut
    # off.
    tokens = tf.pad(tokens, [[0, 0], [0, tf.maximum(1 - length, 0)]])[:, : model.sequence_length]
    valid = tf.sequence_mask(lengths, tf.shape(tokens)[1])
    return Text(tf.where(valid, tokens, 0), valid, lengths, answered)


def solve(
    model: TokenModel,
    text: Text,
    given: dict[str, tf.Tensor],
    solving: Solving,
    *,
    memory: Any = None,
    start: tf.Tensor | None = None,
) -> Solved:
    """Returns the states of texts, for inference.

    Args:
        given: the request, for its tolerance and max_steps.
        memory: the carried memory before the texts, or None.
        start: [B, T', d], start of the solve.
    """
    x = model.embed(text.tokens, training=False)
    if model.equilibrium is None:
        z, memory = _through_network(model.network, x, text, memory)
        return Solved(z, memory, marked(text, _nothing_to_solve(model.network, text)))
    if memory is not None:
        x = {"input": x, "past": memory, "lengths": text.lengths}
    starts = None if start is None else {model.equilibrium.name: start}
    with scope(given, solving, starts) as solves:
        z = model.equilibrium(
            x, mask=text.valid, training=False, explicit_steps=model.explicit_steps or None
        )
    if memory is not None:
        memory = model.cell.remember(z, model.cell.inject(x))
    return Solved(z, memory, marked(text, convergence(solves.solutions)))


def _nothing_to_solve(network: keras.layers.Layer, text: Text) -> dict[str, tf.Tensor]:
    zeros = tf.zeros_like(text.lengths)
    return {
        "residual": tf.cast(zeros, tf.float32),
        "steps": zeros + network.depth,
        "status": zeros + int(Status.CONVERGED),
    }


def _through_network(network, x, text: Text, memory) -> tuple[tf.Tensor, Any]:
    """Returns the output of an explicit network, and its memory after each example's last position.

    The network's own memory is that after all T positions. If a text has fewer, the memory is computed
    position by position, without the outputs of these positions.
    """
    if memory is None:
        return network(x, mask=text.valid, training=False), None
    z, after_all = network(x, memory=memory, mask=text.valid, training=False)

    def position_by_position():
        def advance(t, memory):
            _, after = network(tf.gather(x, [t], axis=1), memory=memory, training=False)
            return t + 1, where_rows(t < text.lengths, after, memory)

        length = tf.shape(x)[1]
        return tf.while_loop(
            lambda t, _: t < length,
            advance,
            (tf.constant(0), memory),
            maximum_iterations=length,
            parallel_iterations=1,
        )[1]

    full = tf.reduce_all(text.valid | ~text.answered[:, None])
    return z, tf.cond(full, lambda: after_all, position_by_position)


def where_rows(rows: tf.Tensor, chosen: Any, other: Any) -> Any:
    """Returns a nest [B, …] from `chosen` in the rows [B] that are True, else from `other`."""

    def choose(one, another):
        shape = [-1] + [1] * (one.shape.rank - 1)
        # The variables of a loop or condition must keep their shapes.
        return tf.ensure_shape(tf.where(tf.reshape(rows, shape), one, another), another.shape)

    return tf.nest.map_structure(choose, chosen, other)


def marked(text: Text, solved: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns convergence with invalid examples marked."""
    return {
        "residual": tf.where(text.answered, solved["residual"], tf.float32.max),
        "steps": tf.where(text.answered, solved["steps"], 0),
        "status": tf.where(text.answered, solved["status"], INVALID),
    }


def next_log_probabilities(model: TokenModel, text: Text, z: tf.Tensor) -> tf.Tensor:
    """Returns log probabilities [B, V] of the token after each example's last."""
    last = tf.gather(z, tf.maximum(text.lengths, 1) - 1, batch_dims=1)
    found = tf.nn.log_softmax(model.logits(last[:, None])[:, 0])
    uniform = -tf.math.log(tf.cast(model.vocabulary_size, tf.float32))
    return tf.where(text.answered[:, None], found, uniform)


def log_likelihood(model: TokenModel, text: Text, z: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Returns the log likelihood [B, width] of each token after the first; 0 for the first and padding."""
    # Not from logits, because an adaptive softmax need not compute those of all tokens.
    scores = -model.negative_log_likelihood(z[:, :-1], text.tokens[:, 1:])
    scores = tf.where(text.valid[:, 1:], scores, 0.0)
    behind = tf.maximum(width - tf.shape(scores)[1] - 1, 0)
    return tf.pad(scores, [[0, 0], [1, behind]])[:, :width]


def shown_equilibrium(text: Text, z: tf.Tensor, given: dict[str, tf.Tensor]) -> tf.Tensor:
    """Returns the equilibrium [B, T, d] at the positions of each example, 0 elsewhere."""
    z = tf.where(text.valid[:, :, None], tf.cast(z, tf.float32), 0.0)
    width = tf.shape(given["tokens"])[1]
    return tf.pad(z, [[0, 0], [0, tf.maximum(width - tf.shape(z)[1], 0)], [0, 0]])[:, :width]
