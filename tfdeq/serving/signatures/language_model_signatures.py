"""The serving signatures of the language models of `tfdeq.models`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeq.models import ExplicitLanguageModel, LanguageModel, generate
from tfdeq.models.generation import can_generate
from tfdeq.models.token_model import TokenModel
from tfdeq.serving.signatures import memory_signature
from tfdeq.serving.signatures.signature import (
    CONVERGENCE,
    INVALID,
    SETTING_SPECS,
    SETTINGS,
    Signature,
    Solving,
    budget,
    solving_of,
    trace,
)
from tfdeq.serving.signatures.text_requests import (
    LOG_PROBABILITIES,
    TEXT,
    TEXT_SPECS,
    Text,
    checked,
    is_equilibrium,
    log_likelihood,
    marked,
    next_log_probabilities,
    solve,
)

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
        "behind start as usual, and all do where it is not one of 1 … S."
    ),
}
_OUTPUTS = {
    "serving_default": {**LOG_PROBABILITIES, **CONVERGENCE},
    "score": {
        "log_likelihood": (
            "[B, T] float32, natural log of p(token t | tokens before t); 0 at t = 0, which "
            "nothing predicts, and at or behind the example's length."
        ),
        **CONVERGENCE,
    },
    "encode": {**_EQUILIBRIUM, **CONVERGENCE},
    "step": {**LOG_PROBABILITIES, **_EQUILIBRIUM, **CONVERGENCE},
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

# Takes a request's tensors by name, and returns those of the answer.
_Function = Callable[..., dict[str, tf.Tensor]]


def signature_names(model: TokenModel) -> list[str]:
    """Returns the names of the signatures that a model is served by."""
    names = ["serving_default", "score"]
    if is_equilibrium(model):
        names += ["encode", "step"]
    if can_generate(model):
        names.append("generate")
    return [*names, memory_signature.NAME] if model.remembers else names


def language_model_signatures(
    model: TokenModel,
    *,
    jit_compile: bool = False,
    compaction: bool = True,
    max_steps_limit: int | None = None,
) -> dict[str, Signature]:
    """Traces `serving_default`, `score`, and what else makes sense for the model.

    An equilibrium also has `encode` and `step`, and `generate` where its cell can go on from a past;
    a model that remembers has `continue_text`, see `tfdeq.serving.signatures.memory_signature`. What has no
    equilibrium takes a tolerance too, which changes nothing: explicit applications of a cell return
    the residual that they ended with, explicit networks 0, and their depth as steps.

    Every tensor has the batch in dimension 0. An example's answer depends neither on its neighbours
    nor on how far and with what it is padded. `serving_default` answers for the last position
    alone: all positions' distributions, [B, T, V], soon exceed the 4 MiB that gRPC clients receive.

    Args:
        model: a built `tfdeq.models.LanguageModel` or `ExplicitLanguageModel`. Traced for inference:
            no dropout, no variable is written.
        jit_compile: compile with XLA; the server must allow it, and compiles for each batch size
            and length.
        compaction: whether examples that are done leave the batch, where not compiled.
        max_steps_limit: see `tfdeq.serving.signatures.signature.solving_of`.

    Returns:
        Name -> `Signature`.

    Raises:
        TypeError: for another kind of model.
    """
    if not isinstance(model, LanguageModel | ExplicitLanguageModel):
        raise TypeError(
            "model must be a tfdeq.models.LanguageModel or ExplicitLanguageModel; received "
            f"{type(model).__name__}. tfdeq.serving.signatures.signature.keras_signatures "
            "traces any Keras model with a DEQLayer."
        )
    solving = solving_of(model, max_steps_limit, compaction)
    signatures = {}
    for name in signature_names(model):
        if name == memory_signature.NAME:
            signatures[name] = memory_signature.continue_text(model, solving, jit_compile)
            continue
        function, specs, meanings = _FUNCTIONS[name](model, solving)
        specs, meanings = {**_SPECS, **specs}, {**TEXT, **SETTINGS, **meanings}
        signatures[name] = Signature(trace(function, specs, jit_compile), meanings, _OUTPUTS[name])
    return signatures


def examples(windows: np.ndarray, model: TokenModel) -> dict[str, np.ndarray]:
    """Returns inputs from real text for the warm-up of a model's signatures.

    Args:
        windows: [N, T] int32 token ids. model: as in `language_model_signatures`.
    """
    count, length = windows.shape
    # Room for new tokens, where the window is as long as the model reads; two of them warm the loop.
    lengths = np.full([count], max(1, min(length, model.sequence_length - 2)), np.int32)
    found = {"tokens": windows, "lengths": lengths}
    if is_equilibrium(model):
        found["equilibrium_lengths"] = lengths
    if can_generate(model):
        found["max_new_tokens"] = np.full([count], 2, np.int32)
        found["stop_token"] = np.full([count], -1, np.int32)
    if model.remembers:
        found.update(memory_signature.empty_memory(model, count))
    return found


def _serving_default(model: TokenModel, solving: Solving) -> tuple[_Function, dict, dict]:
    def serving_default(**given):
        text = checked(model, given)
        solved = solve(model, text, given, solving)
        found = next_log_probabilities(model, text, solved.z)
        return {"log_probabilities": found, **solved.convergence}

    return serving_default, {}, {}


def _score(model: TokenModel, solving: Solving) -> tuple[_Function, dict, dict]:
    def score(**given):
        text = checked(model, given)
        solved = solve(model, text, given, solving)
        width = tf.shape(given["tokens"])[1]
        found = log_likelihood(model, text, solved.z, width)
        return {"log_likelihood": found, **solved.convergence}

    return score, {}, {}


def _encode(model: TokenModel, solving: Solving) -> tuple[_Function, dict, dict]:
    def encode(**given):
        text = checked(model, given)
        solved = solve(model, text, given, solving)
        return {"equilibrium": _shown(text, solved.z, given), **solved.convergence}

    return encode, {}, {}


def _step(model: TokenModel, solving: Solving) -> tuple[_Function, dict, dict]:
    def step(**given):
        text = checked(model, given)
        start = _start(text, given["equilibrium"], given["equilibrium_lengths"])
        solved = solve(model, text, given, solving, start=start)
        return {
            "log_probabilities": next_log_probabilities(model, text, solved.z),
            "equilibrium": _shown(text, solved.z, given),
            **solved.convergence,
        }

    specs = {
        "equilibrium": tf.TensorSpec([None, None, model.state_width], tf.float32, "equilibrium"),
        "equilibrium_lengths": tf.TensorSpec([None], tf.int32, "equilibrium_lengths"),
    }
    return step, specs, _START


def _generate(model: TokenModel, solving: Solving) -> tuple[_Function, dict, dict]:
    def generate_text(**given):
        text = checked(model, given)
        found = generate(
            model,
            text.tokens,
            text.lengths,
            tolerance=given["tolerance"],
            max_steps=budget(given, solving),
            compaction=solving.compaction,
            **{name: given[name] for name in _SAMPLING},
        )
        solved = {name: getattr(found, name) for name in CONVERGENCE}
        return {
            "tokens": found.tokens,
            "lengths": found.lengths,
            "finish": tf.where(text.answered, found.finish, INVALID),
            "prompt_steps": tf.where(text.answered, found.prompt_steps, 0),
            **marked(text, solved),
        }

    return generate_text, _SAMPLING_SPECS, _SAMPLING


_SPECS = {**TEXT_SPECS, **SETTING_SPECS}
_FUNCTIONS: dict[str, Any] = {
    "serving_default": _serving_default,
    "score": _score,
    "encode": _encode,
    "step": _step,
    "generate": _generate,
}


def _shown(text: Text, z: tf.Tensor, given) -> tf.Tensor:
    """The equilibrium [B, T, d] of the positions that an example has, 0 elsewhere."""
    z = tf.where(text.valid[:, :, None], tf.cast(z, tf.float32), 0.0)
    width = tf.shape(given["tokens"])[1]
    return tf.pad(z, [[0, 0], [0, tf.maximum(width - tf.shape(z)[1], 0)], [0, 0]])[:, :width]


def _start(text: Text, equilibrium: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """A start [B, T', d] from the given positions of a last equilibrium; 0 behind them."""
    width = tf.shape(text.tokens)[1]
    given = tf.sequence_mask(lengths, tf.shape(equilibrium)[1])
    equilibrium = tf.where(given[:, :, None], equilibrium, 0.0)
    behind = tf.maximum(width - tf.shape(equilibrium)[1], 0)
    start = tf.pad(equilibrium, [[0, 0], [0, behind], [0, 0]])[:, :width]
    return tf.where(text.valid[:, :, None], start, 0.0)
