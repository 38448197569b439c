"""What a served language model is asked, and how its Keras model answers."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfdeq import SolveScope, Status
from tfdeq.models import LanguageModel, generate
from tfdeq.models.generation import can_generate
from tfdeq.models.token_model import TokenModel
from tfdeq.serving.server.isolated import Request
from tfdeq.serving.signatures.language_model_signatures import signature_names
from tfdeq.serving.signatures.memory_signature import NAME as CONTINUE_TEXT
from tfdeq.serving.signatures.memory_signature import model_memory, named_memory
from tfdeq.serving.signatures.signature import CONVERGENCE, INVALID
from tfdeq.serving.verification.checks import BATCHES, DIAL_EXAMPLES, TOLERANCES, Case, Outputs

_NEW_TOKENS = 6
# The options of `generate`: numbers, and whole numbers.
_REAL = ("temperature", "top_p", "tolerance")
_WHOLE = ("max_new_tokens", "top_k", "seed", "stop_token", "max_steps")
# Numbers of the log probabilities of one call of the Keras model: 64 MiB.
_MOST_VALUES = 2**24


def batch_requests(model: TokenModel, windows: np.ndarray) -> list[Request]:
    """Batches of 1, 3 and 8 windows of different lengths, padded with text, on every signature."""
    requests = []
    for batch in BATCHES:
        lengths = np.linspace(windows.shape[1], 1, batch).round()
        for signature in signature_names(model):
            requests.append(
                request(model, f"batch of {batch}", signature, windows[:batch], lengths)
            )
    # A single example that is padded: the case that the lines above leave out.
    short = [max(1, windows.shape[1] // 3)]
    for signature in signature_names(model):
        requests.append(request(model, "padded single", signature, windows[-1:], short))
    return requests


def dial_request(model: TokenModel, windows: np.ndarray) -> Request:
    """Every tolerance for each of a few windows, all in one batch."""
    count = len(TOLERANCES)
    return request(
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
            cases.append(Case(request(model, name, signature, tokens, [length]), 0))
        crowded = request(model, "in a crowd", signature, crowd, lengths, tolerances)
        cases.append(Case(crowded, 5, 6, INVALID))
    return cases


class KerasModel:
    """Asks a model in Keras, as graphs that are traced once: eagerly, each op would be a call.

    Args:
        model: what a version is compared with.
        limit: the max_steps_limit that the version's card names.
    """

    def __init__(self, model: TokenModel, limit: int):
        self._model, self._width, self._limit = model, model.state_width, limit
        tokens = tf.TensorSpec([None, None], tf.int32)
        start = tf.TensorSpec([1, None, self._width], tf.float32)
        solves = isinstance(model, LanguageModel)

        def call(tokens, tolerance, max_steps, starts=None, **memory):
            settings = {"return_solution": True} if solves else {}
            with SolveScope(tolerance, max_steps, starts):
                found = model(tokens, training=False, **settings, **memory)
            found = list(found) if isinstance(found, tuple) else [found]
            return tf.nn.log_softmax(found[0]), found[1:]

        def call_from(tokens, start, tolerance, max_steps):
            return call(tokens, tolerance, max_steps, {model.equilibrium.name: start})

        def add_text(tokens, options):
            return generate(model, tokens, **options)

        def graph(function, *specs):
            return tf.function(function, input_signature=specs, autograph=False)

        settings = (tf.TensorSpec([None], tf.float32), tf.TensorSpec([None], tf.int32))
        self._call = graph(call, tokens, *settings)
        if solves:
            self._call_from = graph(call_from, tokens, start, *settings)
        if can_generate(model):
            options = {
                name: tf.TensorSpec([None], tf.float32 if name in _REAL else tf.int32)
                for name in (*_REAL, *_WHOLE)
            }
            self._generate = graph(add_text, tokens, options)
        if model.remembers:
            memory = tf.nest.map_structure(
                lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), model.initial_memory(1)
            )
            # Of one text, as its memory is: a network's loop takes no other.
            one = [tf.TensorSpec([1, *spec.shape[1:]], spec.dtype) for spec in (tokens, *settings)]
            self._continue = graph(
                lambda tokens, memory, *settings: call(tokens, *settings, memory=memory),
                *(one[0], memory, *one[1:]),
            )

    def references(self, requests: Sequence[Request]) -> list[list[Outputs]]:
        """The answers to requests, each example alone and unpadded; of equal lengths in `score` together."""
        return [self._rows(request) for request in requests]

    def generate(self, tokens: np.ndarray, **options: float) -> list[int]:
        """Returns the new tokens of one prompt [1, T]."""
        given = {name: np.float32([0.0]) for name in _REAL}
        given |= {name: np.int32([-1 if name == "stop_token" else 0]) for name in _WHOLE}
        given |= {name: np.full([1], value, given[name].dtype) for name, value in options.items()}
        return self._generate(tokens, given).tokens[0].numpy().tolist()

    def _rows(self, request: Request) -> list[Outputs]:
        inputs, count = request.inputs, len(request.inputs["lengths"])
        length = inputs["tokens"].shape[1]
        if request.signature != "score" or (inputs["lengths"] != length).any():
            rows = [{name: value[row] for name, value in inputs.items()} for row in range(count)]
            return [self._answer(request.signature, row) for row in rows]
        found: list[Outputs] = []
        together = max(1, _MOST_VALUES // (length * self._model.vocabulary_size))
        for start in range(0, count, together):
            part = {name: value[start : start + together] for name, value in inputs.items()}
            log_probabilities, solutions = self._call(part["tokens"], *self._settings(part))
            for row, each in enumerate(log_probabilities.numpy()):
                likelihood = _log_likelihood(each, part["tokens"][row])
                found.append({"log_likelihood": likelihood, **self._convergence(row, *solutions)})
        return found

    def _settings(self, given: Outputs) -> tuple[np.ndarray, np.ndarray]:
        """Tolerance and max_steps [B] of the solves, as the signatures' meanings promise them."""
        tolerance, asked = given["tolerance"], given["max_steps"]
        unnamed = np.where(tolerance > 0, self._limit, 0)
        steps = np.where(asked > 0, np.minimum(asked, self._limit), unnamed)
        return np.float32(tolerance), np.int32(steps)

    def _answer(self, signature: str, given: Outputs) -> dict[str, np.ndarray]:
        """Returns one example's outputs; given: its inputs."""
        length = int(given["lengths"])
        tokens = given["tokens"][None, :length]
        given = {name: np.asarray(value)[None] for name, value in given.items()}
        settings = self._settings(given)
        if signature == "generate":
            options = {name: given[name] for name in (*_REAL, *_WHOLE)}
            options["tolerance"], options["max_steps"] = settings
            found = self._generate(tokens, options)
            return {name: value[0].numpy() for name, value in found._asdict().items()}
        log_probabilities, found = self._log_probabilities(signature, given, tokens, settings)
        log_probabilities = log_probabilities[0].numpy()
        row = {}
        if signature == CONTINUE_TEXT:
            after = named_memory(self._model, found.pop())
            row = {name: value[0] for name, value in after.items()}
        row.update(self._convergence(0, *found))
        if signature in ("serving_default", "step", CONTINUE_TEXT):
            row["log_probabilities"] = log_probabilities[-1]
        if signature in ("encode", "step"):
            row["equilibrium"] = found[0].z[0].numpy()
        if signature in ("score", CONTINUE_TEXT):
            row["log_likelihood"] = _log_likelihood(log_probabilities, tokens[0])
        return row

    def _log_probabilities(self, signature, given, tokens, settings):
        """Log probabilities [1, T, V], and what else the model returned."""
        if signature == CONTINUE_TEXT:
            return self._continue(tokens, model_memory(self._model, given), *settings)
        if signature != "step":
            return self._call(tokens, *settings)
        length = tokens.shape[1]
        size = min(int(given["equilibrium_lengths"][0]), length)
        start = np.zeros([1, length, self._width], np.float32)
        start[0, :size] = given["equilibrium"][0, :size]
        return self._call_from(tokens, start, *settings)

    def _convergence(self, row: int, solution=None) -> dict[str, np.ndarray]:
        if solution is not None:
            return {name: getattr(solution, name)[row].numpy() for name in CONVERGENCE}
        steps = np.int32(self._model.network.depth)  # of a network, which solves nothing
        return {"residual": np.float32(0), "steps": steps, "status": np.int32(Status.CONVERGED)}


def _log_likelihood(log_probabilities: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Log likelihoods [T] of tokens [T] from the log probabilities [T, V]; 0 of the first."""
    found = np.zeros(len(tokens), np.float32)
    found[1:] = log_probabilities[np.arange(len(tokens) - 1), tokens[1:]]
    return found


def request(model, name, signature, tokens, lengths, tolerances=None, max_steps=None) -> Request:
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
