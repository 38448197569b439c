"""The serving signatures of `tfdeq.models.LanguageModel`."""

from typing import NamedTuple

import tensorflow as tf

from tfdeq import Status, describe
from tfdeq.models import LanguageModel

# Status of an example that cannot be answered; next to the values of `tfdeq.Status`.
INVALID = -1

INPUTS = {
    "tokens": "[B, T] int32: token ids. What stands at or behind an example's length is ignored.",
    "lengths": "[B] int32: tokens of each example, 1 … min(T, sequence_length).",
    "tolerance": "[B] float32: relative residual at which to stop; <= 0 (or NaN): the model's own.",
    "max_steps": "[B] int32: applications of the cell at most; <= 0: the model's own.",
}
_CONVERGENCE = {
    "residual": "[B] float32: ‖f(z) − z‖ / ‖f(z)‖ over the example's positions; always finite.",
    "steps": "[B] int32: applications of the cell spent on the example.",
    "status": "[B] int32: why the solver stopped; see `status`.",
}
OUTPUTS = {
    "serving_default": {
        "log_probabilities": "[B, V] float32, natural log: the token after the example's last one.",
        **_CONVERGENCE,
    },
    "score": {
        "log_likelihood": (
            "[B, T] float32, natural log of p(token t | tokens before t); 0 at t = 0, which "
            "nothing predicts, and at or behind the example's length."
        ),
        **_CONVERGENCE,
    },
}
STATUS_TEXTS = {
    **{str(int(status)): describe(status) for status in Status},
    str(INVALID): (
        "invalid: a length outside 1 … min(T, sequence_length) or a token id outside 0 … V − 1. "
        "steps is 0, residual the largest float32, log_probabilities are −log V each, "
        "log_likelihood 0. Other examples of the batch are not affected."
    ),
}


class _Equilibrium(NamedTuple):
    tokens: tf.Tensor  # [B, T'] int32, T' = min(T, sequence_length); 0 where not valid
    valid: tf.Tensor  # [B, T'] bool
    lengths: tf.Tensor  # [B] int32; 0 for invalid examples
    z: tf.Tensor  # [B, T', d]
    logits: tf.Tensor  # [B, T', V]; not computed where nothing uses them
    convergence: dict[str, tf.Tensor]  # residual, steps, status: [B]


def language_model_signatures(
    model: LanguageModel,
) -> dict[str, tf.types.experimental.ConcreteFunction]:
    """Traces `serving_default` and `score`; see `INPUTS` and `OUTPUTS` for their tensors.

    Every tensor has the batch in dimension 0. An example's answer depends neither on its neighbours
    nor on how far and with what it is padded. `serving_default` answers for the last position
    alone: all positions' distributions, [B, T, V], soon exceed the 4 MiB that gRPC clients receive.

    Args:
        model: a built language model. Traced for inference: no dropout, no variable is written.

    Returns:
        Signature name -> concrete function.

    Raises:
        TypeError: for another kind of model.
    """
    if not isinstance(model, LanguageModel):
        raise TypeError(
            f"model must be a tfdeq.models.LanguageModel; received {type(model).__name__}. Trace "
            "signatures of your own and pass them to export.saved_model.export."
        )
    vocabulary_size = model.vocabulary_size

    def serving_default(tokens, lengths, tolerance, max_steps):
        solved = _solve(model, tokens, lengths, tolerance, max_steps)
        last = tf.gather(solved.z, tf.maximum(solved.lengths, 1) - 1, batch_dims=1)
        log_probabilities = tf.nn.log_softmax(model.logits(last[:, None])[:, 0])
        uniform = -tf.math.log(tf.cast(vocabulary_size, tf.float32))
        answered = (solved.lengths > 0)[:, None]
        log_probabilities = tf.where(answered, log_probabilities, uniform)
        return {"log_probabilities": log_probabilities, **solved.convergence}

    def score(tokens, lengths, tolerance, max_steps):
        solved = _solve(model, tokens, lengths, tolerance, max_steps)
        scores = -tf.nn.sparse_softmax_cross_entropy_with_logits(
            solved.tokens[:, 1:], solved.logits[:, :-1]
        )
        scores = tf.where(solved.valid[:, 1:], scores, 0.0)
        behind = tf.maximum(tf.shape(tokens)[1] - tf.shape(scores)[1] - 1, 0)
        scores = tf.pad(scores, [[0, 0], [1, behind]])[:, : tf.shape(tokens)[1]]
        return {"log_likelihood": scores, **solved.convergence}

    return {
        "serving_default": _trace(serving_default),
        "score": _trace(score),
    }


def _trace(function) -> tf.types.experimental.ConcreteFunction:
    specs = [
        tf.TensorSpec([None, None], tf.int32, "tokens"),
        tf.TensorSpec([None], tf.int32, "lengths"),
        tf.TensorSpec([None], tf.float32, "tolerance"),
        tf.TensorSpec([None], tf.int32, "max_steps"),
    ]
    # Not jit-compiled: a stock server refuses that at the first request.
    return tf.function(function, input_signature=specs, autograph=False).get_concrete_function()


def _solve(
    model: LanguageModel,
    tokens: tf.Tensor,
    lengths: tf.Tensor,
    tolerance: tf.Tensor,
    max_steps: tf.Tensor,
) -> _Equilibrium:
    tokens, valid, lengths, answered = _checked(model, tokens, lengths)
    solver = model.equilibrium.solver
    logits, solution = model(
        tokens,
        mask=valid,
        tolerance=tf.where(tolerance > 0.0, tolerance, solver.tolerance),
        max_steps=tf.where(max_steps > 0, max_steps, solver.max_steps),
        training=False,
        return_solution=True,
    )
    convergence = {
        "residual": tf.where(answered, solution.residual, tf.float32.max),
        "steps": tf.where(answered, solution.steps, 0),
        "status": tf.where(answered, solution.status, INVALID),
    }
    return _Equilibrium(tokens, valid, lengths, solution.z, logits, convergence)


def _checked(model: LanguageModel, tokens: tf.Tensor, lengths: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Returns tokens [B, T'], their validity [B, T'], lengths [B] and who can be answered [B].

    A bad example gets length 0 instead of an error, which would reach every example of the batch.
    """
    length = tf.shape(tokens)[1]
    inside = tf.sequence_mask(lengths, length)
    known = (tokens >= 0) & (tokens < model.vocabulary_size)
    answered = (lengths >= 1) & (lengths <= tf.minimum(length, model.sequence_length))
    answered &= tf.reduce_all(known | ~inside, axis=1)
    lengths = tf.where(answered, lengths, 0)
    # One column at least, so that there is a last position; columns that nobody may use are cut.
    tokens = tf.pad(tokens, [[0, 0], [0, tf.maximum(1 - length, 0)]])[:, : model.sequence_length]
    valid = tf.sequence_mask(lengths, tf.shape(tokens)[1])
    return tf.where(valid, tokens, 0), valid, lengths, answered
