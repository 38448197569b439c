"""`tfdeq.models.Reasoner`, alone or with puzzles and their answers."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeq.models import Reasoner
from tfdeq.serving.kinds.keras_kind import KerasKind
from tfdeq.serving.server.isolated import Request
from tfdeq.serving.signatures.reasoner_signatures import (
    PUZZLE,
    SOLVE,
    answer,
    puzzle_spec,
    solve_signature,
)
from tfdeq.serving.signatures.signature import Signature, solving_of
from tfdeq.serving.verification import checks
from tfdeq.serving.verification.questions import Questions


class ReasonerKind(KerasKind):
    """A `tfdeq.models.Reasoner`, which is also served with `solve`.

    Args:
        model: a built model.
        spec: spec of the puzzles. None: any size if the cell takes any, else that of the examples.
        examples: {"puzzle": [N, places]}; None: no examples.
        targets, measures, explicit: see `KerasKind`.
    """

    def __init__(
        self,
        model: Reasoner,
        spec: tf.TensorSpec | None = None,
        examples: Mapping[str, np.ndarray] | None = None,
        **settings: Any,
    ):
        self._spec = spec or _spec_of(model, examples)
        super().__init__(model, self._spec, examples, **settings)

    def signature_names(self) -> list[str]:
        return [*super().signature_names(), *([SOLVE] if self.solves else [])]

    def traced(self, only: Collection[str] | None = None, **settings: Any) -> dict[str, Signature]:
        found = super().traced(only, **settings)
        if not self.solves or (only is not None and SOLVE not in only):
            return found
        solving = solving_of(
            self.model, settings.get("max_steps_limit"), settings.get("compaction", True)
        )
        return {**found, SOLVE: solve_signature(self.model, self._spec, solving)}

    def questions(self, card: Mapping[str, Any]) -> Questions:
        found = super().questions(card)
        if SOLVE not in card["signatures"]:
            return found
        limit = card.get("max_steps_limit") or 1
        requests = solve_requests(self._examples[PUZZLE], open_sizes=None in self._spec.shape[1:])
        references = [_references(self.model, request, limit) for request in requests]
        pairs = zip(requests, references, strict=True)
        return found._replace(
            batches=[*found.batches, *requests],
            references=[*found.references, *(checks.comparable(*pair, limit) for pair in pairs)],
        )


def solve_requests(puzzles: np.ndarray, open_sizes: bool) -> list[Request]:
    """Returns requests for `solve`: with one and several starts, and with puzzles of different sizes.

    Args:
        open_sizes: whether puzzles of several sizes are accepted.
    """
    requests = [
        _request("one start", puzzles[:3], [0, 1, -1]),
        _request("several starts", puzzles[:4], [1, 5, 2, 3]),
    ]
    if open_sizes:
        small = puzzles[:2]
        room = [(0, 0), *[(0, 3)] * (small.ndim - 1)]
        padded = np.pad(small, room, constant_values=-1)
        # The larger puzzle is a smaller one, extended periodically: it need not be meaningful to be
        # a request.
        larger = np.pad(puzzles[2:3], room, mode="wrap")
        requests.append(
            _request("beside a larger one", np.concatenate([padded, larger]), [1, 3, 1])
        )
    return requests


def _request(name: str, puzzles: np.ndarray, starts: list[int]) -> Request:
    rows = len(puzzles)
    inputs = {
        PUZZLE: np.asarray(puzzles, np.int32),
        "tolerance": np.zeros([rows], np.float32),
        "max_steps": np.zeros([rows], np.int32),
        "starts": np.asarray(starts[:rows], np.int32),
    }
    return Request(name, SOLVE, inputs)


def _references(model: Reasoner, request: Request, limit: int) -> list[dict[str, np.ndarray]]:
    """Returns the model's answers to the rows of a request, each alone, without places outside it."""
    found = []
    for row, padded in enumerate(request.inputs[PUZZLE]):
        inside = tuple(slice(int(places.max()) + 1) for places in np.nonzero(padded >= 0))
        settings = (
            request.inputs[name][row : row + 1] for name in ("tolerance", "max_steps", "starts")
        )
        tolerance, max_steps, starts = (tf.constant(value) for value in settings)
        max_steps = tf.minimum(max_steps, limit)
        values = answer(model, tf.constant(padded[inside][None]), tolerance, max_steps, starts)
        values = {name: value[0].numpy() for name, value in values.items()}
        whole = np.full(padded.shape, -1, np.int32)
        whole[inside] = values["answer"]
        found.append({**values, "answer": whole})
    return found


def _spec_of(model: Reasoner, examples: Mapping[str, np.ndarray] | None) -> tf.TensorSpec:
    rank = len(model.input_places)
    if model.cell.supports_masking:
        return puzzle_spec(rank)
    places = model.input_places if examples is None else examples[PUZZLE].shape[1:]
    return tf.TensorSpec([None, *places], tf.int32, PUZZLE)
