"""Checks that texts read in segments by a served model give the results of the text in one piece."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfdeq import SolveScope, Status
from tfdeq.data.windows import spread_windows
from tfdeq.models.token_model import TokenModel
from tfdeq.serving.server.isolated import Request
from tfdeq.serving.signatures.text.continue_text import ContinueText, empty_memory
from tfdeq.serving.signatures.text_requests import is_equilibrium
from tfdeq.serving.verification.checks import LIMIT, Check, Outputs

SIGNATURE = ContinueText.name  # only models with a carried memory have it
PERPLEXITY_LIMIT = 1e-3  # of a whole text's, relative
_TEXTS, _ROUNDS = 3, 2
# Close to float32's precision, so that the error of the solve is far below the limits.
_TOLERANCE, _MAX_STEPS = 1e-7, 300
# The limits apply up to this residual. If rounding or the budget ends solves above it, their
# difference is larger, and the limit grows in proportion.
_SETTLED = 2e-6
_ANSWERED = {Status.CONVERGED, Status.MAX_STEPS, Status.STAGNATED}


class Conversation:
    """Three texts of equal length, in calls of `continue_text` that divide each of them differently.

    Args:
        model: the exported model, which has a carried memory.
        stream: [N] token ids.

    Attributes:
        requests: the calls, each of which takes the memory that the previous one returned.
    """

    def __init__(self, model: TokenModel, stream: np.ndarray):
        # Long and short segments and single tokens, in a different order for each text.
        longest = max(1, min(model.sequence_length, (2 * len(stream) // _ROUNDS - 4) // 3))
        sizes = [longest, longest // 2 + 1, 1]
        turned = np.stack([np.roll(sizes, turn) for turn in range(_TEXTS)])
        self._sizes = np.concatenate([turned] * _ROUNDS)  # [calls, texts]
        self._texts = spread_windows(stream, _ROUNDS * sum(sizes), _TEXTS)
        self._solves = is_equilibrium(model)
        self._references = _references(model, self._texts, self._sizes)
        empty = empty_memory(model, _TEXTS)
        first, *others = self._inputs()
        self.requests = [
            Request("conversation", SIGNATURE, {**first, **empty}),
            *(Request("conversation", SIGNATURE, inputs, tuple(empty)) for inputs in others),
        ]

    def check(self, outputs: Sequence[Outputs], runtime: str) -> Check:
        """Checks that log likelihoods are within LIMIT of the Keras model's, and perplexities within theirs.

        The Keras model reads each text in one piece. For explicit applications of a cell, which give
        other results for segments than for the whole text, it reads the same segments.
        """
        residuals = np.max([output["residual"] for output in outputs], axis=0)
        failed = [not set(output["status"]) <= _ANSWERED for output in outputs]
        if self._solves:
            residuals = np.maximum(residuals, [residual for _, residual in self._references])
            factor = float(max(1.0, residuals.max() / _SETTLED))
        else:
            factor = 1.0
        apart, ratios = [], []
        for row, (reference, _) in enumerate(self._references):
            found = self._log_likelihood(outputs, row)
            difference = np.abs(found - reference) / np.maximum(1.0, np.abs(reference))
            apart.append(float(difference.max()))
            ratios.append(float(np.expm1(abs(found.mean() - reference.mean()))))
        limits = factor * LIMIT, factor * PERPLEXITY_LIMIT
        # Written so that NaN fails.
        passed = max(apart) <= limits[0] and max(ratios) <= limits[1] and not any(failed)
        text = (
            f"{_TEXTS} texts of {self._texts.shape[1]} tokens in {len(outputs)} calls: log likelihoods "
            f"differ by at most {max(apart):.1e} (limit {limits[0]:.2g}), perplexities by "
            f"{max(ratios):.1e} (limit {limits[1]:.2g}); largest residual {residuals.max():.1e}"
        )
        if any(failed):
            text = f"{sum(failed)} calls hold an example that could not be answered. {text}"
        values = {"log_likelihoods": apart, "perplexities": ratios, "residuals": residuals.tolist()}
        return Check(f"{runtime}: texts in segments are whole texts", bool(passed), text, values)

    def _inputs(self):
        """Returns the tokens and settings of the calls."""
        places = np.zeros(_TEXTS, int)
        for sizes in self._sizes:
            tokens = np.full([_TEXTS, sizes.max()], -7, np.int32)  # not a valid token id
            for row, size in enumerate(sizes):
                tokens[row, :size] = self._texts[row, places[row] : places[row] + size]
            places += sizes
            yield {
                "tokens": tokens,
                "lengths": sizes.astype(np.int32),
                "tolerance": np.full(_TEXTS, _TOLERANCE, np.float32),
                "max_steps": np.full(_TEXTS, _MAX_STEPS, np.int32),
            }

    def _log_likelihood(self, outputs: Sequence[Outputs], row: int) -> np.ndarray:
        """Returns that of each token of a text after the first, from all calls, [N − 1] float64."""
        parts, last = [], None
        for request, output in zip(self.requests, outputs, strict=True):
            part = np.array(output["log_likelihood"][row, : request.inputs["lengths"][row]], float)
            if last is not None:
                part[0] = last[request.inputs["tokens"][row, 0]]
            parts.append(part)
            last = output["log_probabilities"][row]
        return np.concatenate(parts)[1:]


def _references(model, texts: np.ndarray, sizes: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Returns, for each text, the Keras model's log likelihoods [N − 1] and its largest residual."""
    memory = model.initial_memory(1)
    specs = tf.nest.map_structure(lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), memory)
    settings = {} if model.equilibrium is None else {"return_solution": True}

    def read(tokens, memory):
        with SolveScope(_TOLERANCE, _MAX_STEPS):
            logits, *solution, memory = model(tokens, memory=memory, training=False, **settings)
        residual = solution[0].residual[0] if solution else tf.constant(0.0)
        return tf.nn.log_softmax(logits)[0], residual, memory

    graph = tf.function(
        read, input_signature=[tf.TensorSpec([1, None], tf.int32), specs], autograph=False
    )
    found = []
    for row, text in enumerate(texts):
        pieces = [len(text)]
        if model.explicit_steps:
            pieces = list(sizes[:, row])
        after, parts, residuals = memory, [], []
        for piece in np.split(text, np.cumsum(pieces)[:-1]):
            log_probabilities, residual, after = graph(piece[None], after)
            parts.append(log_probabilities.numpy())
            residuals.append(float(residual))
        every = np.concatenate(parts)[:-1]
        found.append((every[np.arange(len(every)), text[1:]].astype(float), max(residuals)))
    return found
