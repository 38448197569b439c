"""`step`: for texts that grow or change a little, whose solve starts from the last equilibrium."""

import numpy as np
import tensorflow as tf

from tfdeq.serving.signatures.signature import CONVERGENCE
from tfdeq.serving.signatures.text.text_signature import Input, TextSignature
from tfdeq.serving.signatures.text_requests import (
    EQUILIBRIUM,
    LOG_PROBABILITIES,
    Text,
    checked,
    is_equilibrium,
    next_log_probabilities,
    shown_equilibrium,
    solve,
)


class Step(TextSignature):
    """The next token's distribution and the equilibrium, solved from the last one: for streams."""

    name = "step"
    models = "language models that are equilibria"

    def fits(self, model):
        return is_equilibrium(model)

    def inputs(self, model):
        states = tf.TensorSpec([None, None, model.state_width], tf.float32, "equilibrium")
        return [
            Input(
                states,
                "[B, S, d] float32, any S: where to start, such as the last equilibrium. Examples in "
                "which anything is not finite start as usual.",
            ),
            Input(
                tf.TensorSpec([None], tf.int32, "equilibrium_lengths"),
                "[B] int32: positions of `equilibrium` to start from, such as the last text's length; "
                "those behind start as usual, and all do where it is not one of 1 … S.",
            ),
        ]

    def outputs(self, model):
        return {**LOG_PROBABILITIES, **EQUILIBRIUM, **CONVERGENCE}

    def answer(self, model, given, solving):
        text = checked(model, given)
        start = _start(text, given["equilibrium"], given["equilibrium_lengths"])
        solved = solve(model, text, given, solving, start=start)
        return {
            "log_probabilities": next_log_probabilities(model, text, solved.z),
            "equilibrium": shown_equilibrium(text, solved.z, given),
            **solved.convergence,
        }

    def warm_up_inputs(self, model, lengths):
        return {"equilibrium_lengths": lengths}

    def asked_inputs(self, model, count):
        # Shorter than the text, like a stream's last equilibrium.
        start = np.random.default_rng(0).normal(size=[1, 3, model.state_width])
        return {
            "equilibrium": np.repeat(start.astype(np.float32), count, axis=0),
            "equilibrium_lengths": np.full([count], 2, np.int32),
        }

    def reference(self, keras_model, given):
        length = given["tokens"].shape[1]
        size = min(int(given["equilibrium_lengths"][0]), length)
        start = np.zeros([1, length, keras_model.model.state_width], np.float32)
        start[0, :size] = given["equilibrium"][0, :size]
        (read,) = keras_model.read(given, start=start)
        return {
            "log_probabilities": read.log_probabilities[-1],
            "equilibrium": read.z,
            **read.convergence,
        }


def _start(text: Text, equilibrium: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Returns a start [B, T', d] from the given positions of a last equilibrium, and 0 after them."""
    width = tf.shape(text.tokens)[1]
    given = tf.sequence_mask(lengths, tf.shape(equilibrium)[1])
    equilibrium = tf.where(given[:, :, None], equilibrium, 0.0)
    behind = tf.maximum(width - tf.shape(equilibrium)[1], 0)
    start = tf.pad(equilibrium, [[0, 0], [0, behind], [0, 0]])[:, :width]
    return tf.where(text.valid[:, :, None], start, 0.0)
