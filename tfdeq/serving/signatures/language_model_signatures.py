"""The serving signatures of the language models of `tfdeq.models`."""

from collections.abc import Collection

import numpy as np

from tfdeq.models import ExplicitLanguageModel, LanguageModel
from tfdeq.models.token_model import TokenModel
from tfdeq.serving.signatures import text
from tfdeq.serving.signatures.signature import Signature, solving_of


def signature_names(model: TokenModel) -> list[str]:
    """Returns the names of a model's signatures."""
    return [signature.name for signature in text.of(model)]


def language_model_signatures(
    model: TokenModel,
    *,
    jit_compile: bool = False,
    compaction: bool = True,
    max_steps_limit: int | None = None,
    only: Collection[str] | None = None,
) -> dict[str, Signature]:
    """Traces the signatures of `tfdeq.serving.signatures.text` that fit the model.

    Models without an equilibrium also take a tolerance, which has no effect. Explicit applications of a
    cell return the residual at their end, explicit networks 0; their steps are the depth.

    Args:
        model: a built `tfdeq.models.LanguageModel` or `ExplicitLanguageModel`. It is traced for
            inference, without dropout and without writing variables.
        jit_compile: whether to compile with XLA; the server must allow it, and compiles for each batch
            size and length.
        compaction: whether examples that are done leave the batch, if not compiled.
        max_steps_limit: see `tfdeq.serving.signatures.signature.solving_of`.
        only: names of the signatures to trace. None: all.

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
        if only is None or signature.name in only
    }


def examples(windows: np.ndarray, model: TokenModel) -> dict[str, np.ndarray]:
    """Returns inputs from real text for the warm-up of a model's signatures.

    Args:
        windows: [N, T] int32 token ids. model: as in `language_model_signatures`.
    """
    count, length = windows.shape
    # Leaves room for two new tokens if the window has the model's full length.
    lengths = np.full([count], max(1, min(length, model.sequence_length - 2)), np.int32)
    found = {"tokens": windows, "lengths": lengths}
    for signature in text.of(model):
        found.update(signature.warm_up_inputs(model, lengths))
    return found
