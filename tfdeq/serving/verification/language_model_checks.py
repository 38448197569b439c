"""Verification requests for a served language model, and the Keras model's answers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeq import SolveScope, Status
from tfdeq.models import generate
from tfdeq.models.generation import can_generate
from tfdeq.models.generation_segments import Paused, empty_paused, generate_segment
from tfdeq.models.token_model import TokenModel
from tfdeq.serving.server.isolated import Request
from tfdeq.serving.signatures.language_model_signatures import signature_names
from tfdeq.serving.signatures.signature import CONVERGENCE, INVALID, SETTING_SPECS
from tfdeq.serving.signatures.text import ServingDefault, get
from tfdeq.serving.signatures.text.generate import SAMPLING_SPECS, greedy
from tfdeq.serving.signatures.text.text_signature import Reading
from tfdeq.serving.verification.checks import BATCHES, DIAL_EXAMPLES, TOLERANCES, Case, Outputs

_GENERATE_SPECS = {
    name: tf.TensorSpec(spec.shape, spec.dtype)
    for name, spec in {**SAMPLING_SPECS, **SETTING_SPECS}.items()
}
_SEGMENT_SPECS = {
    **_GENERATE_SPECS,
    "segment_tokens": tf.TensorSpec([None], tf.int32),
    "drawn": tf.TensorSpec([None], tf.int32),
}


def batch_requests(model: TokenModel, windows: np.ndarray) -> list[Request]:
    """Batches of 1, 3 and 8 windows of different lengths, padded with text, for every signature."""
    requests = []
    for batch in BATCHES:
        lengths = np.linspace(windows.shape[1], 1, batch).round()
        for signature in signature_names(model):
            requests.append(
                request(model, f"batch of {batch}", signature, windows[:batch], lengths)
            )
    # A single padded example, which the lines above do not include.
    short = [max(1, windows.shape[1] // 3)]
    for signature in signature_names(model):
        requests.append(request(model, "padded single", signature, windows[-1:], short))
    return requests


def dial_request(model: TokenModel, windows: np.ndarray) -> Request:
    """All tolerances for a few windows, in one batch."""
    count = len(TOLERANCES)
    return request(
        model,
        "dial",
        ServingDefault.name,
        np.repeat(windows[:DIAL_EXAMPLES], count, axis=0),
        np.full(DIAL_EXAMPLES * count, windows.shape[1]),
        np.tile(TOLERANCES, DIAL_EXAMPLES),
        np.zeros(DIAL_EXAMPLES * count),
    )


def neighbour_cases(model: TokenModel, windows: np.ndarray) -> list[Case]:
    """One example alone, with several kinds of padding, and in a batch with one that has no token."""
    length = max(1, 2 * windows.shape[1] // 3)
    alone = windows[:1, :length]
    crowd = windows.copy()
    crowd[5] = windows[0]
    crowd[5, length:] = -7  # not a valid token id
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
    """Computes a Keras model's answers, in graphs that are traced once, because eager mode is slower.

    Args:
        model: the model that a version is compared with.
        limit: the max_steps_limit in the version's card.
    """

    def __init__(self, model: TokenModel, limit: int):
        self.model, self._limit = model, limit
        tokens = tf.TensorSpec([None, None], tf.int32)
        start = tf.TensorSpec([1, None, model.state_width], tf.float32)
        solves = model.equilibrium is not None

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
            self._generate = graph(add_text, tokens, _GENERATE_SPECS)
            self._segments = {
                False: graph(
                    lambda tokens, options: generate_segment(model, tokens, **options),
                    *(tokens, _SEGMENT_SPECS),
                ),
                True: graph(
                    lambda tokens, options, paused: generate_segment(
                        model, tokens, paused=paused, **options
                    ),
                    *(tokens, _SEGMENT_SPECS, _specs_of(empty_paused(model, 1))),
                ),
            }
        if model.remembers:
            memory = _specs_of(model.initial_memory(1))
            # For one text, like its memory: a network's loop accepts no other shape.
            one = [tf.TensorSpec([1, *spec.shape[1:]], spec.dtype) for spec in (tokens, *settings)]
            self._continue = graph(
                lambda tokens, memory, *settings: call(tokens, *settings, memory=memory),
                *(one[0], memory, *one[1:]),
            )

    def references(self, requests: Sequence[Request]) -> list[list[Outputs]]:
        """Returns the answers to requests, for each example alone and without padding."""
        return [get(asked.signature).references(self, asked.inputs) for asked in requests]

    def read(
        self, given: Outputs, *, start: np.ndarray | None = None, memory: Any = None
    ) -> list[Reading]:
        """See `tfdeq.serving.signatures.text.text_signature.KerasReader`."""
        tokens, settings = given["tokens"], self._settings(given)
        after = None
        if memory is not None:
            log_probabilities, found = self._continue(tokens, memory, *settings)
            after = found.pop()
        elif start is not None:
            log_probabilities, found = self._call_from(tokens, start, *settings)
        else:
            log_probabilities, found = self._call(tokens, *settings)
        return [
            Reading(
                each,
                found[0].z[row].numpy() if found else None,
                self._convergence(row, *found),
                after,
            )
            for row, each in enumerate(log_probabilities.numpy())
        ]

    def generate(self, given: Outputs) -> dict[str, np.ndarray]:
        """See `tfdeq.serving.signatures.text.text_signature.KerasReader`."""
        found = self._generate(given["tokens"], self._options(given, _GENERATE_SPECS))
        return {name: value[0].numpy() for name, value in found._asdict().items()}

    def generate_segment(
        self, given: Outputs, paused: Paused | None = None
    ) -> tuple[dict[str, np.ndarray], Paused]:
        """See `tfdeq.serving.signatures.text.text_signature.KerasReader`."""
        options = self._options(given, _SEGMENT_SPECS)
        state = () if paused is None else (paused,)
        found, after = self._segments[bool(state)](given["tokens"], options, *state)
        return {name: value[0].numpy() for name, value in found._asdict().items()}, after

    def _options(self, given: Outputs, specs: Mapping[str, tf.TensorSpec]) -> dict[str, np.ndarray]:
        """Returns the settings of a generation, greedy where the request has none."""
        usual = {"tolerance": 0.0, "max_steps": 0, "segment_tokens": 0, "drawn": 0}
        given = {**greedy(1, 0), **usual, **given}
        options = {
            name: np.full([1], given[name], spec.dtype.as_numpy_dtype)
            for name, spec in specs.items()
        }
        options["tolerance"], options["max_steps"] = self._settings(options)
        return options

    def _settings(self, given: Outputs) -> tuple[np.ndarray, np.ndarray]:
        """Returns tolerance and max_steps [B] of the solves, as the signatures document them."""
        tolerance, asked = given["tolerance"], given["max_steps"]
        unnamed = np.where(tolerance > 0, self._limit, 0)
        steps = np.where(asked > 0, np.minimum(asked, self._limit), unnamed)
        return np.float32(tolerance), np.int32(steps)

    def _convergence(self, row: int, solution=None) -> dict[str, np.ndarray]:
        if solution is not None:
            return {name: getattr(solution, name)[row].numpy() for name in CONVERGENCE}
        steps = np.int32(self.model.network.depth)  # for a network, which makes no solve
        return {"residual": np.float32(0), "steps": steps, "status": np.int32(Status.CONVERGED)}


def _specs_of(nest: Any) -> Any:
    return tf.nest.map_structure(lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), nest)


def request(model, name, signature, tokens, lengths, tolerances=None, max_steps=None) -> Request:
    batch = len(tokens)
    inputs = {
        "tokens": np.asarray(tokens, np.int32),
        "lengths": np.asarray(lengths, np.int32),
        "tolerance": np.asarray(np.zeros(batch) if tolerances is None else tolerances, np.float32),
        "max_steps": np.asarray(np.zeros(batch) if max_steps is None else max_steps, np.int32),
    }
    inputs.update(get(signature).asked_inputs(model, batch))
    return Request(name, signature, inputs)
