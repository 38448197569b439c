"""`score`: the log likelihood of each token of a text."""

import tensorflow as tf

from tfdeq.serving.signatures.signature import CONVERGENCE
from tfdeq.serving.signatures.text.text_signature import TextSignature
from tfdeq.serving.signatures.text_requests import checked, log_likelihood, solve

# Largest number of log probabilities in one call of the Keras model: 64 MiB.
_MOST_VALUES = 2**24


class Score(TextSignature):
    """The log likelihood of each token after the first."""

    name = "score"

    def outputs(self, model):
        return {
            "log_likelihood": (
                "[B, T] float32, natural log of p(token t | tokens before t); 0 at t = 0, which "
                "nothing predicts, and at or behind the example's length."
            ),
            **CONVERGENCE,
        }

    def answer(self, model, given, solving):
        text = checked(model, given)
        solved = solve(model, text, given, solving)
        width = tf.shape(given["tokens"])[1]
        found = log_likelihood(model, text, solved.z, width)
        return {"log_likelihood": found, **solved.convergence}

    def reference(self, keras_model, given):
        (found,) = self._read(keras_model, given)
        return found

    def references(self, keras_model, inputs):
        """Computes texts without padding together, as many as memory allows."""
        length = inputs["tokens"].shape[1]
        if (inputs["lengths"] != length).any():
            return super().references(keras_model, inputs)
        together = max(1, _MOST_VALUES // (length * keras_model.model.vocabulary_size))
        found = []
        for start in range(0, len(inputs["lengths"]), together):
            part = {name: value[start : start + together] for name, value in inputs.items()}
            found += self._read(keras_model, part)
        return found

    def _read(self, keras_model, given):
        return [
            {"log_likelihood": read.log_likelihood(tokens), **read.convergence}
            for read, tokens in zip(keras_model.read(given), given["tokens"], strict=True)
        ]
