"""`encode`: the equilibrium of a text."""

from tfdeq.serving.signatures.signature import CONVERGENCE
from tfdeq.serving.signatures.text.text_signature import TextSignature
from tfdeq.serving.signatures.text_requests import (
    EQUILIBRIUM,
    checked,
    is_equilibrium,
    shown_equilibrium,
    solve,
)


class Encode(TextSignature):
    """The equilibrium of each position."""

    name = "encode"
    models = "language models that are equilibria"

    def fits(self, model):
        return is_equilibrium(model)

    def outputs(self, model):
        return {**EQUILIBRIUM, **CONVERGENCE}

    def answer(self, model, given, solving):
        text = checked(model, given)
        solved = solve(model, text, given, solving)
        return {"equilibrium": shown_equilibrium(text, solved.z, given), **solved.convergence}

    def reference(self, keras_model, given):
        (read,) = keras_model.read(given)
        return {"equilibrium": read.z, **read.convergence}
