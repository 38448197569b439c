"""The serving signatures of the language models of `tfdeq.models`."""

import numpy as np

from tfdeq.models import ExplicitLanguageModel, LanguageModel
from tfdeq.models.token_model import TokenModel
from tfdeq.serving.signatures import text
from tfdeq.serving.signatures.signature import Signature, solving_of


def signature_names(model: TokenModel) -> list[str]:
    """Returns the names of the signatures that a model is served by."""
    return [signature.name for signature in text.of(model)]


def language_model_signatures(
    model: TokenModel,
    *,
    jit_compile: bool = False,
    compaction: bool = True,
    max_steps_limit: int | None = None,
) -> dict[str, Signature]:
    """Traces those of `tfdeq.serving.signatures.text` that make sense for the model.

    What has no equilibrium takes a tolerance too, which changes nothing: explicit applications of a
    cell return the residual that they ended with, explicit networks 0, and their depth as steps.

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
            f"{type(model).__name__}. tfdeq.serving.signatures.keras_signatures "
            "traces any Keras model with a DEQLayer."
        )
    solving = solving_of(model, max_steps_limit, compaction)
    return {
        signature.name: signature.traced(model, solving, jit_compile)
        for signature in text.of(model)
    }


def examples(windows: np.ndarray, model: TokenModel) -> dict[str, np.ndarray]:
    """Returns inputs from real text for the warm-up of a model's signatures.

    Args:
        windows: [N, T] int32 token ids. model: as in `language_model_signatures`.
    """
    count, length = windows.shape
    # Room for two new tokens, where the window is as long as the model reads.
    lengths = np.full([count], max(1, min(length, model.sequence_length - 2)), np.int32)
    found = {"tokens": windows, "lengths": lengths}
    for signature in text.of(model):
        found.update(signature.warm_up_inputs(model, lengths))
    return found
