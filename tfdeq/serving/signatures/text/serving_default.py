"""`serving_default`: the distribution of the token after a text."""

from tfdeq.serving.signatures.signature import CONVERGENCE
from tfdeq.serving.signatures.text.text_signature import TextSignature
from tfdeq.serving.signatures.text_requests import (
    LOG_PROBABILITIES,
    checked,
    next_log_probabilities,
    solve,
)


class ServingDefault(TextSignature):
    """The distribution of the next token.

    It is returned only for the last position: the distributions of all positions, [B, T, V], could
    exceed the 4 MiB limit of gRPC clients.
    """

    name = "serving_default"

    def outputs(self, model):
        return {**LOG_PROBABILITIES, **CONVERGENCE}

    def answer(self, model, given, solving):
        text = checked(model, given)
        solved = solve(model, text, given, solving)
        found = next_log_probabilities(model, text, solved.z)
        return {"log_probabilities": found, **solved.convergence}

    def reference(self, keras_model, given):
        (read,) = keras_model.read(given)
        return {"log_probabilities": read.log_probabilities[-1], **read.convergence}
