"""`generate_first`: a prompt's first new tokens, and a state from which `generate_next` goes on."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfdeq import Status
from tfdeq.models.generation import can_generate
from tfdeq.models.generation_segments import Paused, empty_paused, generate_segment
from tfdeq.models.token_model import TokenModel
from tfdeq.serving.signatures import carried
from tfdeq.serving.signatures.signature import CONVERGENCE, INVALID, budget
from tfdeq.serving.signatures.text.generate import SAMPLING_SPECS, Generate, greedy
from tfdeq.serving.signatures.text.text_signature import Input, TextSignature
from tfdeq.serving.signatures.text_requests import Text, checked, marked, where_rows

SEGMENT_TOKENS = Input(
    tf.TensorSpec([None], tf.int32, "segment_tokens"),
    "[B] int32: tokens to add in this call at most; not > 0: no limit but max_new_tokens.",
)
_RETURNED = (
    "for `generate_next`: the state of the text before its last token; zeros: invalid example"
)
_ASKED_TOKENS = 4  # in verification requests


class GenerateFirst(TextSignature):
    """The first new tokens, and the state from which `generate_next` goes on."""

    name = "generate_first"
    models = Generate.models
    one_solve = False

    def fits(self, model):
        return can_generate(model)

    def inputs(self, model):
        return [*Generate().inputs(model), SEGMENT_TOKENS]

    def outputs(self, model):
        return {
            **Generate().outputs(model),
            "finish": (
                "[B] int32: why the tokens end. 0: with the stop token, which is the last; 1: "
                "max_new_tokens; 2: the model's sequence_length; 3: segment_tokens, the text goes on "
                "with `generate_next`; -1: invalid example."
            ),
            **carried.meanings(state_layout(model), _RETURNED),
        }

    def returned(self, model):
        return "`tokens` [B, sequence_length], `lengths`, `finish`, `prompt_steps`, the state: `state_…`"

    def answer(self, model, given, solving):
        text = checked(model, given)
        found, paused = generate_segment(
            model, text.tokens, text.lengths, **options(given, solving)
        )
        layout = state_layout(model)
        after = carried.served(layout, as_nest(paused))
        empty = tf.nest.map_structure(tf.zeros_like, after)
        prompt_steps = tf.where(text.answered, found.prompt_steps, 0)
        return {**shown(text, found, after, empty), "prompt_steps": prompt_steps}

    def invalid(self, output, given):
        return {"tokens": -1, "finish": INVALID}.get(output, 0)

    def warm_up_inputs(self, model, lengths):
        # A single token is what streams ask for, and the loop is warmed up by `generate_next`.
        return {"segment_tokens": np.ones([len(lengths)], np.int32)}

    def asked_inputs(self, model, count):
        asked = {"segment_tokens": np.full([count], _ASKED_TOKENS, np.int32)}
        return {**greedy(count, 2 * _ASKED_TOKENS), **asked}

    def reference(self, keras_model, given):
        found, paused = keras_model.generate_segment(given)
        return {**found, **named_state(keras_model.model, paused)}


def state_layout(model: TokenModel) -> Any:
    """Returns the structure of the state of texts as a nest of `carried.Leaf`."""
    return carried.layout_of("state", lambda: as_nest(empty_paused(model, 1)))


def as_nest(paused: Paused) -> dict[str, Any]:
    """Returns a state as a nest whose keys are parts of the served names."""
    return {"equilibrium": paused.equilibrium, "past": paused.past}


def named_state(model: TokenModel, paused: Paused) -> dict[str, np.ndarray]:
    """Returns a state [1, …] of the Keras model by served names, without its batch dimension."""
    found = carried.served(state_layout(model), as_nest(paused))
    return {name: value[0].numpy() for name, value in found.items()}


def options(given: dict[str, tf.Tensor], solving: Any) -> dict[str, Any]:
    """Returns the settings of a request as arguments of `generate_segment`."""
    return {
        "segment_tokens": given["segment_tokens"],
        "tolerance": given["tolerance"],
        "max_steps": budget(given, solving),
        "compaction": solving.compaction,
        **{name: given[name] for name in SAMPLING_SPECS},
    }


def shown(text: Text, found: Any, after: Any, otherwise: Any) -> dict[str, tf.Tensor]:
    """Returns the outputs that both signatures of segments have.

    Args:
        found: the `Generation`. after: the state by served names. otherwise: that of examples that are
            invalid, or whose state is not finite, which have the status NON_FINITE.
    """
    finite = carried.finite_rows(after)
    solved = {name: getattr(found, name) for name in CONVERGENCE}
    solved["status"] = tf.where(finite, solved["status"], int(Status.NON_FINITE))
    return {
        "tokens": tf.where(text.answered[:, None], found.tokens, -1),
        "lengths": tf.where(text.answered, found.lengths, 0),
        "finish": tf.where(text.answered, found.finish, INVALID),
        **marked(text, solved),
        **where_rows(finite & text.answered, after, otherwise),
    }
