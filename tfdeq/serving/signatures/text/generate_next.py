"""`generate_next`: the tokens after those of `generate_first`, a segment per call."""

import keras
import numpy as np
import tensorflow as tf

from tfdeq.models.generation_segments import Paused, generate_segment
from tfdeq.serving.signatures import carried
from tfdeq.serving.signatures.signature import INVALID
from tfdeq.serving.signatures.text.generate_first import (
    GenerateFirst,
    as_nest,
    named_state,
    options,
    shown,
    state_layout,
)
from tfdeq.serving.signatures.text.text_signature import Input, TextSignature
from tfdeq.serving.signatures.text_requests import checked, where_rows

_TAKEN = "what the last call returned under this name, of the same text"
_RETURNED = (
    "for the next call: the state before the text's last token; zeros if it does not go on; invalid "
    "example: the one given, or zeros if that is not finite"
)
_DRAWN = Input(
    tf.TensorSpec([None], tf.int32, "drawn"),
    "[B] int32: how many of the text's tokens are new, 0 … its length − 1.",
)
_EARLIER = 12  # tokens of the text whose state verification requests have


class GenerateNext(TextSignature):
    """More new tokens of a text that `generate_first` began; `tokens` are the whole text so far.

    The tokens of all calls together are those of `generate` with the same settings, exactly.

    An example with an invalid text or state is marked as invalid and keeps its state, or zeros if that is
    not finite.
    """

    name = "generate_next"
    models = GenerateFirst.models
    one_solve = False

    def fits(self, model):
        return GenerateFirst().fits(model)

    def inputs(self, model):
        layout = state_layout(model)
        meanings = carried.meanings(layout, _TAKEN)
        state = [Input(leaf.spec, meanings[leaf.name]) for leaf in keras.tree.flatten(layout)]
        return [*GenerateFirst().inputs(model), _DRAWN, *state]

    def outputs(self, model):
        outputs = GenerateFirst().outputs(model)
        del outputs["prompt_steps"]
        return {**outputs, **carried.meanings(state_layout(model), _RETURNED)}

    def taken(self, model):
        return "those of `generate_first`, `drawn`, the state: `state_…`"

    def returned(self, model):
        return "`tokens` [B, sequence_length], `lengths`, `finish`, the next state under the same names"

    def answer(self, model, given, solving):
        layout = state_layout(model)
        received = {leaf.name: given[leaf.name] for leaf in keras.tree.flatten(layout)}
        finite = carried.finite_rows(received)
        received = where_rows(finite, received, tf.nest.map_structure(tf.zeros_like, received))
        possible = (given["drawn"] >= 0) & (given["drawn"] < given["lengths"])
        text = checked(model, given, also=finite & possible)
        found, paused = generate_segment(
            model,
            text.tokens,
            text.lengths,
            paused=Paused(**carried.in_model(layout, received)),
            drawn=given["drawn"],
            **options(given, solving),
        )
        after = carried.served(layout, as_nest(paused))
        return shown(text, found, after, received)

    def invalid(self, output, given):
        if output in given and output.startswith("state_"):
            return given[output]  # the state in the request
        return {"tokens": -1, "finish": INVALID}.get(output, 0)

    def warm_up_inputs(self, model, lengths):
        count = len(lengths)
        return {**carried.zeros(state_layout(model), count), "drawn": np.zeros([count], np.int32)}

    def asked_inputs(self, model, count):
        # After another text; later places have none.
        earlier = np.arange(max(1, min(_EARLIER, model.sequence_length - 1)))[None]
        _, paused = generate_segment(model, earlier % model.vocabulary_size, segment_tokens=1)
        state = {
            name: np.repeat(value[None], count, axis=0)
            for name, value in named_state(model, paused).items()
        }
        return {
            **GenerateFirst().asked_inputs(model, count),
            **state,
            "drawn": np.zeros([count], np.int32),
        }

    def reference(self, keras_model, given):
        model = keras_model.model
        paused = Paused(**carried.in_model(state_layout(model), given))
        found, paused = keras_model.generate_segment(given, paused)
        del found["prompt_steps"]
        return {**found, **named_state(model, paused)}
