"""What a served language model is asked, and how its Keras model answers."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from export.checks import (
    BATCHES,
    DIAL_EXAMPLES,
    DIAL_MAX_STEPS,
    TOLERANCES,
    Case,
    Outputs,
)
from export.isolated import Request
from export.signatures import INVALID
from tfdeq import SolveScope
from tfdeq.models import LanguageModel, generate

_NEW_TOKENS = 6


def signatures(model: LanguageModel) -> list[str]:
    """The signatures that a model is served by."""
    every = ["serving_default", "score", "encode", "step", "generate"]
    return every[:-1] if model.explicit_steps else every


def batch_requests(model: LanguageModel, windows: np.ndarray) -> list[Request]:
    """Batches of 1, 3 and 8 windows of different lengths, padded with text, on every signature."""
    requests = []
    for batch in BATCHES:
        lengths = np.linspace(windows.shape[1], 1, batch).round()
        for signature in signatures(model):
            requests.append(
                _request(model, f"batch of {batch}", signature, windows[:batch], lengths)
            )
    # A single example that is padded: the case that the lines above leave out.
    short = [max(1, windows.shape[1] // 3)]
    for signature in signatures(model):
        requests.append(_request(model, "padded single", signature, windows[-1:], short))
    return requests


def dial_request(model: LanguageModel, windows: np.ndarray) -> Request:
    """Every tolerance for each of a few windows, all in one batch."""
    count = len(TOLERANCES)
    return _request(
        model,
        "dial",
        "serving_default",
        np.repeat(windows[:DIAL_EXAMPLES], count, axis=0),
        np.full(DIAL_EXAMPLES * count, windows.shape[1]),
        np.tile(TOLERANCES, DIAL_EXAMPLES),
        np.full(DIAL_EXAMPLES * count, DIAL_MAX_STEPS),
    )


def neighbour_cases(model: LanguageModel, windows: np.ndarray) -> list[Case]:
    """One example alone, padded in several ways, and in a crowd with one that has no token."""
    length = max(1, 2 * windows.shape[1] // 3)
    alone = windows[:1, :length]
    crowd = windows.copy()
    crowd[5] = windows[0]
    crowd[5, length:] = -7  # no token id at all
    lengths = np.linspace(1, windows.shape[1], len(windows)).round()
    lengths[[5, 6]] = length, 0
    tolerances = np.full(len(windows), 1e-2)
    tolerances[5] = 0.0
    cases = []
    for signature in signatures(model):
        padded = {
            "alone": alone,
            "padded with 0": np.pad(alone, [(0, 0), (0, windows.shape[1] - length)]),
            "padded beyond the model's length": np.pad(
                alone, [(0, 0), (0, model.sequence_length + 3 - length)], constant_values=2**31 - 1
            ),
        }
        for name, tokens in padded.items():
            cases.append(Case(_request(model, name, signature, tokens, [length]), 0))
        request = _request(model, "in a crowd", signature, crowd, lengths, tolerances)
        cases.append(Case(request, 5, 6, INVALID))
    return cases


def references(model: LanguageModel, requests: Sequence[Request]) -> list[list[Outputs]]:
    """The Keras model's answers to requests at its own settings: each example alone, unpadded."""
    return [
        [
            _reference(model, request, {name: value[row] for name, value in request.inputs.items()})
            for row in range(len(request.inputs["lengths"]))
        ]
        for request in requests
    ]


def _reference(model: LanguageModel, request: Request, given: Outputs) -> dict[str, np.ndarray]:
    length = int(given["lengths"])
    tokens = given["tokens"][None, :length]
    if request.signature == "generate":
        found = generate(model, tokens, max_new_tokens=_NEW_TOKENS, stop_token=-1)
        return {name: value[0].numpy() for name, value in found._asdict().items()}
    starts = {}
    if request.signature == "step":
        size = min(int(given["equilibrium_lengths"]), length)
        start = np.zeros([1, length, model.cell.width], np.float32)
        start[0, :size] = given["equilibrium"][:size]
        starts[model.equilibrium.name] = start
    with SolveScope(starts=starts):
        logits, solution = model(tokens, return_solution=True, training=False)
    log_probabilities = tf.nn.log_softmax(logits)[0].numpy()
    row = {name: getattr(solution, name)[0].numpy() for name in ("residual", "steps", "status")}
    if request.signature in ("serving_default", "step"):
        row["log_probabilities"] = log_probabilities[-1]
    if request.signature in ("encode", "step"):
        row["equilibrium"] = solution.z[0].numpy()
    if request.signature == "score":
        row["log_likelihood"] = np.zeros(length, np.float32)
        row["log_likelihood"][1:] = log_probabilities[np.arange(length - 1), tokens[0, 1:]]
    return row


def _request(model, name, signature, tokens, lengths, tolerances=None, max_steps=None) -> Request:
    batch = len(tokens)
    inputs = {
        "tokens": np.asarray(tokens, np.int32),
        "lengths": np.asarray(lengths, np.int32),
        "tolerance": np.asarray(np.zeros(batch) if tolerances is None else tolerances, np.float32),
        "max_steps": np.asarray(np.zeros(batch) if max_steps is None else max_steps, np.int32),
    }
    if signature == "step":
        # Shorter than the text, as a stream's last equilibrium is; the same for every example.
        start = np.random.default_rng(0).normal(size=[1, 3, model.cell.width])
        inputs["equilibrium"] = np.repeat(start.astype(np.float32), batch, axis=0)
        inputs["equilibrium_lengths"] = np.full([batch], 2, np.int32)
    if signature == "generate":
        inputs["max_new_tokens"] = np.full([batch], _NEW_TOKENS, np.int32)
        inputs["stop_token"] = np.full([batch], -1, np.int32)
        for option, dtype in (("temperature", "float32"), ("top_k", "int32"), ("top_p", "float32")):
            inputs[option] = np.zeros([batch], dtype)
        inputs["seed"] = np.zeros([batch], np.int32)
    return Request(name, signature, inputs)
