"""The serving signatures of `tfdeq.models.LanguageModel`."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from export.signatures import (
    CONVERGENCE,
    INVALID,
    MAX_STEPS_LIMIT,
    SETTING_SPECS,
    SETTINGS,
    STATUS_TEXTS,
    Signature,
    convergence,
    scope,
    trace,
)
from tfdeq.models import LanguageModel, generate

_TEXT = {
    "tokens": "[B, T] int32: token ids. What stands at or behind an example's length is ignored.",
    "lengths": "[B] int32: tokens of each example, 1 … min(T, sequence_length).",
}
_SAMPLING = {
    "max_new_tokens": "[B] int32: tokens to add at most; not > 0: as many as the model has room for.",
    "temperature": "[B] float32: divides the logits; not > 0: the likeliest token, always.",
    "top_k": "[B] int32: draw from so many likeliest tokens; not > 0: from all.",
    "top_p": (
        "[B] float32: draw from the fewest likeliest tokens of this probability together, after "
        "top_k; not in (0, 1): from all."
    ),
    "seed": "[B] int32: the same seed gives a prompt the same text, whatever shares its batch.",
    "stop_token": "[B] int32: the text ends after it; < 0: no token ends it.",
}
_SAMPLING_SPECS = {
    name: tf.TensorSpec([None], tf.float32 if name in ("temperature", "top_p") else tf.int32, name)
    for name in _SAMPLING
}
_LOG_PROBABILITIES = {
    "log_probabilities": "[B, V] float32, natural log: the token after the example's last one.",
}
_EQUILIBRIUM = {
    "equilibrium": (
        "[B, T, d] float32: the equilibrium of each position; 0 at or behind the example's length."
    ),
}
_START = {
    "equilibrium": (
        "[B, S, d] float32, any S: where to start, such as the last equilibrium. Examples in which "
        "anything is not finite start as usual."
    ),
    "equilibrium_lengths": (
        "[B] int32: positions of `equilibrium` to start from, such as the last text's length; those "
        "behind start as usual. A server pads what is shorter with some number, not with zeros."
    ),
}
_OUTPUTS = {
    "serving_default": {**_LOG_PROBABILITIES, **CONVERGENCE},
    "score": {
        "log_likelihood": (
            "[B, T] float32, natural log of p(token t | tokens before t); 0 at t = 0, which "
            "nothing predicts, and at or behind the example's length. Wider than T where the server "
            "joined the request with longer ones; so is `equilibrium` of `encode` and `step`."
        ),
        **CONVERGENCE,
    },
    "encode": {**_EQUILIBRIUM, **CONVERGENCE},
    "step": {**_LOG_PROBABILITIES, **_EQUILIBRIUM, **CONVERGENCE},
    "generate": {
        "tokens": "[B, sequence_length] int32: the new tokens; -1 behind the last.",
        "lengths": "[B] int32: how many new tokens there are.",
        "finish": (
            "[B] int32: why the text ended. 0: with the stop token, which is its last; 1: "
            "max_new_tokens; 2: the model's sequence_length; -1: invalid example."
        ),
        "prompt_steps": "[B] int32: those of `steps` that were on the whole prompt.",
        "residual": "[B] float32: the largest residual of the example's solves; always finite.",
        "steps": "[B] int32: applications of the cell, of all the example's solves together.",
        "status": "[B] int32: the worst of the example's solves; see `status`.",
    },
}
LANGUAGE_STATUS_TEXTS = {
    **STATUS_TEXTS,
    str(INVALID): (
        "invalid: a length outside 1 … min(T, sequence_length) or a token id outside 0 … V − 1. "
        "steps is 0, residual the largest float32, log_probabilities are −log V each, everything "
        "else is 0, generated tokens are −1. Other examples of the batch are not affected."
    ),
}


class _Text(NamedTuple):
    """A request's text, made safe: a bad example has length 0 instead of an error for all."""

    tokens: tf.Tensor  # [B, T'] int32, T' = min(T, sequence_length), at least 1; 0 where not valid
    valid: tf.Tensor  # [B, T'] bool
    lengths: tf.Tensor  # [B] int32; 0 for invalid examples
    answered: tf.Tensor  # [B] bool


class _Solved(NamedTuple):
    z: tf.Tensor  # [B, T', d]
    logits: tf.Tensor  # [B, T', V]; not computed where nothing uses them
    convergence: dict[str, tf.Tensor]  # residual, steps, status: [B]


def language_model_signatures(
    model: LanguageModel, *, jit_compile: bool = False, compaction: bool = True
) -> dict[str, Signature]:
    """Traces `serving_default`, `score`, `encode`, `step` and, for an equilibrium, `generate`.

    Every tensor has the batch in dimension 0. An example's answer depends neither on its neighbours
    nor on how far and with what it is padded. `serving_default` answers for the last position
    alone: all positions' distributions, [B, T, V], soon exceed the 4 MiB that gRPC clients receive.
    A model of explicit applications has no equilibria to keep, so no `generate`.

    Args:
        model: a built language model. Traced for inference: no dropout, no variable is written.
        jit_compile: compile with XLA; the server must allow it, and compiles for each batch size
            and length.
        compaction: whether examples that are done leave the batch, where not compiled.

    Returns:
        Name -> `Signature`.

    Raises:
        TypeError: for another kind of model.
    """
    if not isinstance(model, LanguageModel):
        raise TypeError(
            f"model must be a tfdeq.models.LanguageModel; received {type(model).__name__}. "
            "export.signatures.keras_signatures traces any Keras model with a DEQLayer."
        )

    def solve(text, given, start=None):
        return _solve(model, text, given, start, compaction)

    def serving_default(**given):
        text = _checked(model, given)
        solved = solve(text, given)
        return {"log_probabilities": _next(model, text, solved.z), **solved.convergence}

    def score(**given):
        text = _checked(model, given)
        solved = solve(text, given)
        width = tf.shape(given["tokens"])[1]
        return {"log_likelihood": _scores(text, solved.logits, width), **solved.convergence}

    def encode(**given):
        text = _checked(model, given)
        solved = solve(text, given)
        return {"equilibrium": _shown(text, solved.z, given), **solved.convergence}

    def step(**given):
        text = _checked(model, given)
        start = _start(text, given["equilibrium"], given["equilibrium_lengths"])
        solved = solve(text, given, start)
        return {
            "log_probabilities": _next(model, text, solved.z),
            "equilibrium": _shown(text, solved.z, given),
            **solved.convergence,
        }

    specs = {
        "tokens": tf.TensorSpec([None, None], tf.int32, "tokens"),
        "lengths": tf.TensorSpec([None], tf.int32, "lengths"),
        **SETTING_SPECS,
    }
    start_specs = {
        "equilibrium": tf.TensorSpec([None, None, model.cell.width], tf.float32, "equilibrium"),
        "equilibrium_lengths": tf.TensorSpec([None], tf.int32, "equilibrium_lengths"),
    }
    meaning = {**_TEXT, **SETTINGS}
    functions = {
        "serving_default": (serving_default, specs, meaning),
        "score": (score, specs, meaning),
        "encode": (encode, specs, meaning),
        "step": (step, {**specs, **start_specs}, {**meaning, **_START}),
    }
    if not model.explicit_steps:
        functions["generate"] = (
            lambda **given: _generate(model, given, compaction),
            {**specs, **_SAMPLING_SPECS},
            {**meaning, **_SAMPLING},
        )
    return {
        name: Signature(trace(function, taken, jit_compile), meanings, _OUTPUTS[name])
        for name, (function, taken, meanings) in functions.items()
    }


def examples(windows: np.ndarray, model: LanguageModel) -> dict[str, np.ndarray]:
    """Returns inputs from real text for the warm-up of a model's signatures.

    Args:
        windows: [N, T] int32 token ids. model: as in `language_model_signatures`.
    """
    count, length = windows.shape
    # Room for new tokens, where the window is as long as the model reads; two of them warm the loop.
    lengths = np.full([count], max(1, min(length, model.sequence_length - 2)), np.int32)
    found = {"tokens": windows, "lengths": lengths, "equilibrium_lengths": lengths}
    if not model.explicit_steps:
        found["max_new_tokens"] = np.full([count], 2, np.int32)
        found["stop_token"] = np.full([count], -1, np.int32)
    return found


def _solve(model, text: _Text, given, start, compaction: bool) -> _Solved:
    starts = None if start is None else {model.equilibrium.name: start}
    with scope(given["tolerance"], given["max_steps"], starts, compaction) as solves:
        logits, solution = model(text.tokens, mask=text.valid, training=False, return_solution=True)
    return _Solved(solution.z, logits, _marked(text, convergence(solves.solutions)))


def _marked(text: _Text, solved: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Convergence with the invalid examples marked."""
    return {
        "residual": tf.where(text.answered, solved["residual"], tf.float32.max),
        "steps": tf.where(text.answered, solved["steps"], 0),
        "status": tf.where(text.answered, solved["status"], INVALID),
    }


def _next(model, text: _Text, z: tf.Tensor) -> tf.Tensor:
    """Log probabilities [B, V] of the token behind each example's last."""
    last = tf.gather(z, tf.maximum(text.lengths, 1) - 1, batch_dims=1)
    found = tf.nn.log_softmax(model.logits(last[:, None])[:, 0])
    uniform = -tf.math.log(tf.cast(model.vocabulary_size, tf.float32))
    return tf.where(text.answered[:, None], found, uniform)


def _scores(text: _Text, logits: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Log likelihood [B, width] of each token after the first."""
    scores = -tf.nn.sparse_softmax_cross_entropy_with_logits(text.tokens[:, 1:], logits[:, :-1])
    scores = tf.where(text.valid[:, 1:], scores, 0.0)
    behind = tf.maximum(width - tf.shape(scores)[1] - 1, 0)
    return tf.pad(scores, [[0, 0], [1, behind]])[:, :width]


def _shown(text: _Text, z: tf.Tensor, given) -> tf.Tensor:
    """The equilibrium [B, T, d] of the positions that an example has, 0 elsewhere."""
    z = tf.where(text.valid[:, :, None], tf.cast(z, tf.float32), 0.0)
    width = tf.shape(given["tokens"])[1]
    return tf.pad(z, [[0, 0], [0, tf.maximum(width - tf.shape(z)[1], 0)], [0, 0]])[:, :width]


def _start(text: _Text, equilibrium: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """A start [B, T', d] from the given positions of a last equilibrium; 0 behind them."""
    width = tf.shape(text.tokens)[1]
    given = tf.sequence_mask(lengths, tf.shape(equilibrium)[1])
    equilibrium = tf.where(given[:, :, None], equilibrium, 0.0)
    behind = tf.maximum(width - tf.shape(equilibrium)[1], 0)
    start = tf.pad(equilibrium, [[0, 0], [0, behind], [0, 0]])[:, :width]
    return tf.where(text.valid[:, :, None], start, 0.0)


def _generate(model, given, compaction: bool) -> dict[str, tf.Tensor]:
    text = _checked(model, given)
    found = generate(
        model,
        text.tokens,
        text.lengths,
        tolerance=given["tolerance"],
        max_steps=tf.minimum(given["max_steps"], MAX_STEPS_LIMIT),
        compaction=compaction,
        **{name: given[name] for name in _SAMPLING},
    )
    convergence = {name: getattr(found, name) for name in ("residual", "steps", "status")}
    return {
        "tokens": found.tokens,
        "lengths": found.lengths,
        "finish": tf.where(text.answered, found.finish, INVALID),
        "prompt_steps": tf.where(text.answered, found.prompt_steps, 0),
        **_marked(text, convergence),
    }


def _checked(model, given) -> _Text:
    tokens, lengths = given["tokens"], given["lengths"]
    length = tf.shape(tokens)[1]
    inside = tf.sequence_mask(lengths, length)
    known = (tokens >= 0) & (tokens < model.vocabulary_size)
    answered = (lengths >= 1) & (lengths <= tf.minimum(length, model.sequence_length))
    answered &= tf.reduce_all(known | ~inside, axis=1)
    lengths = tf.where(answered, lengths, 0)
    # One column at least, so that there is a last position; columns that nobody may use are cut.
    tokens = tf.pad(tokens, [[0, 0], [0, tf.maximum(1 - length, 0)]])[:, : model.sequence_length]
    valid = tf.sequence_mask(lengths, tf.shape(tokens)[1])
    return _Text(tf.where(valid, tokens, 0), valid, lengths, answered)
