"""`generate`: new tokens after a text, one after another."""

import numpy as np
import tensorflow as tf

from tfdeq.models import generate
from tfdeq.models.generation import can_generate
from tfdeq.serving.signatures.signature import CONVERGENCE, INVALID, budget
from tfdeq.serving.signatures.text.text_signature import Input, TextSignature
from tfdeq.serving.signatures.text_requests import checked, marked

_NEW_TOKENS = 6  # in verification requests
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
SAMPLING_SPECS = {
    name: tf.TensorSpec([None], tf.float32 if name in ("temperature", "top_p") else tf.int32, name)
    for name in _SAMPLING
}


def greedy(count: int, max_new_tokens: int) -> dict[str, np.ndarray]:
    """Returns inputs of `generate` for `count` prompts: the most likely tokens, without a stop token."""
    given = {"max_new_tokens": max_new_tokens, "stop_token": -1}
    return {
        name: np.full([count], given.get(name, 0), spec.dtype.as_numpy_dtype)
        for name, spec in SAMPLING_SPECS.items()
    }


class Generate(TextSignature):
    """New tokens, each from a solve of only its own position."""

    name = "generate"
    models = "equilibria of a `TransformerCell`, or of a cell that remembers"
    one_solve = False

    def fits(self, model):
        return can_generate(model)

    def inputs(self, model):
        return [Input(spec, _SAMPLING[name]) for name, spec in SAMPLING_SPECS.items()]

    def outputs(self, model):
        return {
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
        }

    def answer(self, model, given, solving):
        text = checked(model, given)
        found = generate(
            model,
            text.tokens,
            text.lengths,
            tolerance=given["tolerance"],
            max_steps=budget(given, solving),
            compaction=solving.compaction,
            **{name: given[name] for name in SAMPLING_SPECS},
        )
        solved = {name: getattr(found, name) for name in CONVERGENCE}
        return {
            "tokens": found.tokens,
            "lengths": found.lengths,
            "finish": tf.where(text.answered, found.finish, INVALID),
            "prompt_steps": tf.where(text.answered, found.prompt_steps, 0),
            **marked(text, solved),
        }

    def invalid(self, output, given):
        return {"tokens": -1, "finish": INVALID}.get(output, 0)

    def warm_up_inputs(self, model, lengths):
        # Two new tokens are enough to warm up the loop.
        count = len(lengths)
        return {
            "max_new_tokens": np.full([count], 2, np.int32),
            "stop_token": np.full([count], -1, np.int32),
        }

    def asked_inputs(self, model, count):
        return greedy(count, _NEW_TOKENS)

    def reference(self, keras_model, given):
        return keras_model.generate(given)
