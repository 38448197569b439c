"""Verification requests for any served Keras model with a `DEQLayer`, and the model's own answers."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfdeq import Solution, SolveScope, Status, certified_radius
from tfdeq.serving.server.isolated import Request
from tfdeq.serving.signatures.certificates import certificate_of
from tfdeq.serving.signatures.keras_signatures import (
    equilibria,
    input_structure,
    named_outputs,
    starts_of,
)
from tfdeq.serving.signatures.served_names import CERTIFIED_RADIUS
from tfdeq.serving.signatures.signature import SETTINGS, convergence, nothing_to_solve
from tfdeq.serving.verification.checks import (
    ASKED_SETTINGS,
    BATCHES,
    DIAL_EXAMPLES,
    TOLERANCES,
    Case,
    Outputs,
    above_limit,
)

Examples = Mapping[str, np.ndarray]


class Probe(NamedTuple):
    """Real inputs of a model, and starts for `step`."""

    inputs: Examples  # name -> [N, ...], with the served dtype
    starts: Examples


def batch_requests(probe: Probe, signatures: Sequence[str]) -> list[Request]:
    """Batches of 1, 3 and 8 examples for every signature without other inputs."""
    return [
        _request(f"batch of {batch}", signature, probe, np.arange(batch))
        for batch in BATCHES
        for signature in signatures
    ]


def dial_request(probe: Probe) -> Request:
    """All tolerances for a few examples, in one batch."""
    count = len(TOLERANCES)
    request = _request("dial", "serving_default", probe, np.repeat(np.arange(DIAL_EXAMPLES), count))
    request.inputs["tolerance"] = np.tile(TOLERANCES, DIAL_EXAMPLES).astype(np.float32)
    return request


def settings_requests(probe: Probe, signatures: Sequence[str], limit: int) -> list[Request]:
    """One example with each setting alone, with both, and with max_steps above the version's limit.

    Args:
        limit: the version's max_steps_limit.
    """
    settings = (*ASKED_SETTINGS, above_limit(limit))
    found = []
    for signature in signatures:
        request = _request("settings", signature, probe, [0] * len(settings))
        for name, values in zip(SETTINGS, np.transpose(settings), strict=True):
            request.inputs[name] = values.astype(request.inputs[name].dtype)
        found.append(request)
    return found


def neighbour_cases(probe: Probe, signatures: Sequence[str]) -> list[Case]:
    """One example alone, in a batch padded with copies, and next to one that contains NaN."""
    cases = []
    floating = [name for name, value in probe.inputs.items() if value.dtype.kind == "f"]
    for signature in signatures:
        cases.append(Case(_request("alone", signature, probe, [0]), 0))
        cases.append(Case(_request("filled up with copies", signature, probe, [0] * 5), 3))
        request = _request("in a crowd", signature, probe, [3, 1, 0, 2])
        request.inputs["tolerance"] = np.array([1e-2, 1e-5, 0.0, 1e-1], np.float32)
        cases.append(Case(request, 2))
        if floating:
            request = _request("next to NaN", signature, probe, [0, 1])
            request.inputs[floating[0]][1] = np.nan
            cases.append(Case(request, 0, 1, int(Status.NON_FINITE)))
    return cases


def probe_of(model: keras.Model, inputs: Any, examples: Examples) -> Probe:
    """Returns the examples, and starts half-way to their equilibria.

    Raises:
        ValueError: if the examples lack an input.
    """
    structure, names = input_structure(model, inputs)
    missing = sorted(set(names) - set(examples))
    if missing:
        raise ValueError(f"examples must name every input; missing: {', '.join(missing)}.")
    dtypes = [tf.as_dtype(spec.dtype).as_numpy_dtype for spec in keras.tree.flatten(structure)]
    given = {
        name: np.asarray(examples[name], dtype) for name, dtype in zip(names, dtypes, strict=True)
    }
    _, solutions = _solve(model, inputs, given, (None, None))
    halves = {name: 0.5 * value.numpy() for name, value in equilibria(solutions).items()}
    return Probe(given, halves)


def references(
    model: keras.Model, inputs: Any, requests: Sequence[Request], limit: int
) -> list[list[Outputs]]:
    """Returns the Keras model's answers to requests, for each example alone.

    Args:
        limit: the max_steps_limit in the version's card.
    """
    found = []
    compiled: dict[
        str, Any
    ] = {}  # signature -> function, because many small eager operations take long
    for request in requests:
        signature = request.signature
        if signature not in compiled:
            compiled[signature] = _answering(model, inputs, signature)
        tolerance, steps = _settings(request.inputs, limit)
        given = {name: request.inputs[name] for name in request.inputs.keys() - SETTINGS.keys()}
        rows = []
        for row in range(len(tolerance)):
            one = {name: tf.constant(value[row : row + 1]) for name, value in given.items()}
            settings = [tf.constant(value[row : row + 1]) for value in (tolerance, steps)]
            answer = compiled[signature](one, *settings)
            rows.append({name: value[0].numpy() for name, value in answer.items()})
        if request.signature == "serving_default":
            _add_radius(model, inputs, request, limit, rows)
        found.append(rows)
    return found


def _add_radius(model, inputs, request: Request, limit: int, rows: list[dict]) -> None:
    """Adds the certified radius to the answers of a request, if the model has one."""
    if certificate_of(model) is None:
        return
    # Of all rows in one call: the singular values of the weights take longer than the solves.
    (name,) = input_structure(model, inputs)[1]
    try:
        with SolveScope(*_settings(request.inputs, limit)):
            radius = certified_radius(model, request.inputs[name])
    except ValueError:
        return
    for row, value in zip(rows, radius.numpy(), strict=True):
        converged = row["status"] == Status.CONVERGED
        row[CERTIFIED_RADIUS] = value if converged else np.zeros_like(value)


def _settings(given: Examples, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tolerance and the budget of the solves for a request, [B]."""
    tolerance, asked = given["tolerance"], given["max_steps"]
    steps = np.where(asked > 0, np.minimum(asked, limit), np.where(tolerance > 0, limit, 0))
    return np.float32(tolerance), np.int32(steps)


def _answering(model, inputs, signature: str) -> Any:
    """Returns (given, tolerance, steps) -> the Keras model's answer to a request of one example."""

    def answer(given, *settings):
        outputs, solutions = _solve(model, inputs, given, settings)
        if signature == "step":
            layout = {name: solution.z for name, solution in solutions.items()}
            outputs, solutions = _solve(model, inputs, given, settings, starts_of(layout, given))
        found = convergence(solutions) or nothing_to_solve(settings[1])
        if signature != "encode":
            found.update(named_outputs(outputs))
        if signature != "serving_default":
            found.update(equilibria(solutions))
        return found

    return tf.function(answer, autograph=False)


def _solve(
    model, inputs, given: Examples, settings: tuple[Any, Any], starts: Any = None
) -> tuple[Any, dict[str, Solution]]:
    structure, names = input_structure(model, inputs)
    x = keras.tree.pack_sequence_as(
        structure, [tf.convert_to_tensor(given[name]) for name in names]
    )
    with SolveScope(*settings, starts) as solves:
        outputs = model(x, training=False)
    return outputs, solves.solutions


def _request(name: str, signature: str, probe: Probe, rows: Any) -> Request:
    rows = np.asarray(rows)
    given = {**probe.inputs, **(probe.starts if signature == "step" else {})}
    inputs = {key: np.take(value, rows % len(value), axis=0).copy() for key, value in given.items()}
    for setting, dtype in zip(SETTINGS, (np.float32, np.int32), strict=True):
        inputs[setting] = np.zeros([len(rows)], dtype)
    return Request(name, signature, inputs)
