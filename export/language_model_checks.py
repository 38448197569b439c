"""What a served language model is asked, and how its Keras model answers."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from export.checks import (
    BATCHES,
    DIAL_EXAMPLES,
    TOLERANCES,
    Case,
    Outputs,
)
from export.isolated import Request
from export.language_model_signatures import signature_names
from export.memory_signature import NAME as CONTINUE_TEXT
from export.memory_signature import model_memory, named_memory
from export.signatures import CONVERGENCE, INVALID
from tfdeq import SolveScope, Status
from tfdeq.models import LanguageModel, generate
from tfdeq.models.generation import can_generate
from tfdeq.models.token_model import TokenModel

_NEW_TOKENS = 6


def batch_requests(model: TokenModel, windows: np.ndarray) -> list[Request]:
    """Batches of 1, 3 and 8 windows of different lengths, padded with text, on every signature."""
    requests = []
    for batch in BATCHES:
        lengths = np.linspace(windows.shape[1], 1, batch).round()
        for signature in signature_names(model):
            requests.append(
                _request(model, f"batch of {batch}", signature, windows[:batch], lengths)
            )
    # A single example that is padded: the case that the lines above leave out.
    short = [max(1, windows.shape[1] // 3)]
    for signature in signature_names(model):
        requests.append(_request(model, "padded single", signature, windows[-1:], short))
    return requests


def dial_request(model: TokenModel, windows: np.ndarray) -> Request:
    """Every tolerance for each of a few windows, all in one batch."""
    count = len(TOLERANCES)
    return _request(
        model,
        "dial",
        "serving_default",
        np.repeat(windows[:DIAL_EXAMPLES], count, axis=0),
        np.full(DIAL_EXAMPLES * count, windows.shape[1]),
        np.tile(TOLERANCES, DIAL_EXAMPLES),
        np.zeros(DIAL_EXAMPLES * count),
    )


def neighbour_cases(model: TokenModel, windows: np.ndarray) -> list[Case]:
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
    for signature in signature_names(model):
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


def references(model: TokenModel, requests: Sequence[Request]) -> list[list[Outputs]]:
    """The Keras model's answers to requests at its own settings: each example alone, unpadded."""
    keras_model = _KerasModel(model)
    return [
        [
            keras_model.answer(
                request.signature, {name: value[row] for name, value in request.inputs.items()}
            )
            for row in range(len(request.inputs["lengths"]))
        ]
        for request in requests
    ]


class _KerasModel:
    """Asks a model in Keras, as a graph that is traced once: eagerly, each op would be a call."""

    def __init__(self, model: TokenModel):
        self._model, self._width = model, model.state_width
        tokens = tf.TensorSpec([1, None], tf.int32)
        start = tf.TensorSpec([1, None, self._width], tf.float32)
        solves = isinstance(model, LanguageModel)

        def call(tokens, **memory):
            settings = {"return_solution": True} if solves else {}
            found = model(tokens, training=False, **settings, **memory)
            found = list(found) if isinstance(found, tuple) else [found]
            return tf.nn.log_softmax(found[0]), found[1:]

        def call_from(tokens, start):
            with SolveScope(starts={model.equilibrium.name: start}):
                return call(tokens)

        def add_text(tokens):
            return generate(model, tokens, max_new_tokens=_NEW_TOKENS, stop_token=-1)

        def graph(function, *specs):
            return tf.function(function, input_signature=specs, autograph=False)

        self._call = graph(call, tokens)
        if solves:
            self._call_from = graph(call_from, tokens, start)
        if can_generate(model):
            self._generate = graph(add_text, tokens)
        if model.remembers:
            memory = tf.nest.map_structure(
                lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), model.initial_memory(1)
            )
            self._continue = graph(
                lambda tokens, memory: call(tokens, memory=memory), tokens, memory
            )

    def answer(self, signature: str, given: Outputs) -> dict[str, np.ndarray]:
        """Returns one example's outputs; given: its inputs."""
        length = int(given["lengths"])
        tokens = given["tokens"][None, :length]
        if signature == "generate":
            found = self._generate(tokens)
            return {name: value[0].numpy() for name, value in found._asdict().items()}
        log_probabilities, found = self._log_probabilities(signature, given, tokens)
        log_probabilities = log_probabilities[0].numpy()
        row = {}
        if signature == CONTINUE_TEXT:
            after = named_memory(self._model, found.pop())
            row = {name: value[0] for name, value in after.items()}
        row.update(self._convergence(*found))
        if signature in ("serving_default", "step", CONTINUE_TEXT):
            row["log_probabilities"] = log_probabilities[-1]
        if signature in ("encode", "step"):
            row["equilibrium"] = found[0].z[0].numpy()
        if signature in ("score", CONTINUE_TEXT):
            row["log_likelihood"] = np.zeros(length, np.float32)
            row["log_likelihood"][1:] = log_probabilities[np.arange(length - 1), tokens[0, 1:]]
        return row

    def _log_probabilities(self, signature, given, tokens):
        """Log probabilities [1, T, V], and what else the model returned."""
        if signature == CONTINUE_TEXT:
            one = {name: value[None] for name, value in given.items()}
            return self._continue(tokens, model_memory(self._model, one))
        if signature != "step":
            return self._call(tokens)
        length = tokens.shape[1]
        size = min(int(given["equilibrium_lengths"]), length)
        start = np.zeros([1, length, self._width], np.float32)
        start[0, :size] = given["equilibrium"][:size]
        return self._call_from(tokens, start)

    def _convergence(self, solution=None) -> dict[str, np.ndarray]:
        if solution is not None:
            return {name: getattr(solution, name)[0].numpy() for name in CONVERGENCE}
        steps = np.int32(self._model.network.depth)  # of a network, which solves nothing
        return {"residual": np.float32(0), "steps": steps, "status": np.int32(Status.CONVERGED)}


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
        start = np.random.default_rng(0).normal(size=[1, 3, model.state_width])
        inputs["equilibrium"] = np.repeat(start.astype(np.float32), batch, axis=0)
        inputs["equilibrium_lengths"] = np.full([batch], 2, np.int32)
    if signature == CONTINUE_TEXT:
        # After a text that is shorter than what the model remembers; the same for every example.
        earlier = np.arange(3)[None] % model.vocabulary_size
        *_, memory = model(earlier, memory=model.initial_memory(1), training=False)
        for leaf, value in named_memory(model, memory).items():
            inputs[leaf] = np.repeat(value, batch, axis=0)
    if signature == "generate":
        inputs["max_new_tokens"] = np.full([batch], _NEW_TOKENS, np.int32)
        inputs["stop_token"] = np.full([batch], -1, np.int32)
        for option, dtype in (("temperature", "float32"), ("top_k", "int32"), ("top_p", "float32")):
            inputs[option] = np.zeros([batch], dtype)
        inputs["seed"] = np.zeros([batch], np.int32)
    return Request(name, signature, inputs)
