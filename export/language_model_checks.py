"""What a served language model is asked, and what its answers must satisfy."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from export.isolated import Request
from export.language_model_signatures import INVALID
from tfdeq import Status
from tfdeq.models import LanguageModel

BATCHES = (1, 3, 8)
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
DIAL_WINDOWS = 3
DIAL_MAX_STEPS = 100
# Largest difference of natural log probabilities between two computations of one answer.
LIMIT = 1e-4
# Where rounding decides: residuals this near to a tolerance, or to each other, count as equal.
_RELATIVE_SLACK, _ABSOLUTE_SLACK = 2e-3, 1e-6
_OUTPUT = {"serving_default": "log_probabilities", "score": "log_likelihood"}

Outputs = Mapping[str, np.ndarray]


class Check(NamedTuple):
    """One finding of a verification."""

    name: str
    passed: bool
    text: str  # one line: what was measured, or what is wrong
    values: dict[str, Any]


def windows_of(stream: np.ndarray, length: int) -> np.ndarray:
    """Returns [8, T] int32 windows spread evenly over a token stream, T = min(length, its size)."""
    length = min(length, len(stream))
    count = max(BATCHES)
    starts = np.arange(count) * (len(stream) - length) // max(count - 1, 1)
    return np.stack([stream[start : start + length] for start in starts]).astype(np.int32)


def batch_requests(windows: np.ndarray) -> list[Request]:
    """Batches of 1, 3 and 8 windows of different lengths, padded with text, on both signatures."""
    requests = []
    for batch in BATCHES:
        lengths = np.linspace(windows.shape[1], 1, batch).round()
        for signature in _OUTPUT:
            requests.append(_request(f"batch of {batch}", signature, windows[:batch], lengths))
    # A single example that is padded: the case that the lines above leave out.
    short = [max(1, windows.shape[1] // 3)]
    requests.append(_request("padded single", "serving_default", windows[-1:], short))
    return requests


def dial_request(windows: np.ndarray) -> Request:
    """Every tolerance for each of a few windows, all in one batch."""
    count = len(TOLERANCES)
    return _request(
        "dial",
        "serving_default",
        np.repeat(windows[:DIAL_WINDOWS], count, axis=0),
        np.full(DIAL_WINDOWS * count, windows.shape[1]),
        np.tile(TOLERANCES, DIAL_WINDOWS),
        np.full(DIAL_WINDOWS * count, DIAL_MAX_STEPS),
    )


def neighbour_requests(windows: np.ndarray, sequence_length: int) -> list[tuple[Request, int]]:
    """One example alone, padded in several ways, and in a crowd: requests and its row in each."""
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
    for signature in _OUTPUT:
        padded = {
            "alone": alone,
            "padded with 0": np.pad(alone, [(0, 0), (0, windows.shape[1] - length)]),
            "padded beyond the model's length": np.pad(
                alone, [(0, 0), (0, sequence_length + 3 - length)], constant_values=2**31 - 1
            ),
        }
        for name, tokens in padded.items():
            cases.append((_request(name, signature, tokens, [length]), 0))
        cases.append((_request("in a crowd", signature, crowd, lengths, tolerances), 5))
    return cases


def references(model: LanguageModel, request: Request) -> list[dict[str, np.ndarray]]:
    """The Keras model's answers to a request at its own settings: each example alone, unpadded."""
    rows = []
    width = request.inputs["tokens"].shape[1]
    for tokens, length in zip(request.inputs["tokens"], request.inputs["lengths"], strict=True):
        tokens = tokens[:length]
        logits, solution = model(tokens[None], return_solution=True, training=False)
        log_probabilities = tf.nn.log_softmax(logits)[0].numpy()
        if request.signature == "serving_default":
            output = log_probabilities[-1]
        else:
            output = np.zeros(width, np.float32)
            output[1:length] = log_probabilities[np.arange(length - 1), tokens[1:]]
        row = {_OUTPUT[request.signature]: output}
        for name in ("residual", "steps", "status"):
            row[name] = getattr(solution, name)[0].numpy()
        rows.append(row)
    return rows


def check_against_model(
    model: LanguageModel, requests: Sequence[Request], outputs: Sequence[Outputs], runtime: str
) -> Check:
    """Log probabilities within LIMIT of the Keras model's; steps and status equal.

    An example whose residual meets or misses the tolerance by rounding alone may stop one step
    apart. Such a row is counted as near a tolerance and not compared further.
    """
    pairs = []
    for request, output in zip(requests, outputs, strict=True):
        for row, reference in enumerate(references(model, request)):
            label = f"{request.signature}, {request.name}, row {row}"
            answer = {name: value[row] for name, value in output.items()}
            pairs.append((label, answer, reference))
    name = f"{runtime}: equal to the Keras model"
    return _compare(name, pairs, model.equilibrium.solver.tolerance)


def check_neighbours(
    cases: Sequence[tuple[Request, int]], outputs: Sequence[Outputs], tolerance: float, runtime: str
) -> Check:
    """An example's answer is the same alone, padded in any way, and in any batch."""
    alone: dict[str, dict[str, np.ndarray]] = {}
    pairs = []
    crowd_is_right = True
    for (request, row), output in zip(cases, outputs, strict=True):
        answer = {name: value[row] for name, value in output.items()}
        if request.name == "alone":
            alone[request.signature] = answer
            continue
        reference = dict(alone[request.signature])
        if request.signature == "score":
            size = len(answer["log_likelihood"]) - len(reference["log_likelihood"])
            reference["log_likelihood"] = np.pad(reference["log_likelihood"], (0, size))
        pairs.append((f"{request.signature}, {request.name}", answer, reference))
        invalid = (request.inputs["lengths"] < 1).nonzero()[0]
        crowd_is_right &= bool((output["status"][invalid] == INVALID).all())
    check = _compare(f"{runtime}: independent of padding and neighbours", pairs, tolerance)
    if not crowd_is_right:
        text = f"{check.text}; an example of length 0 did not get the status {INVALID}"
        return check._replace(passed=False, text=text)
    return check


def check_dial(output: Outputs, explicit: bool, runtime: str) -> Check:
    """Residuals at most the tolerance where converged; smaller tolerance, no larger residual."""
    shape = (DIAL_WINDOWS, len(TOLERANCES))
    residual, steps, status = (output[name].reshape(shape) for name in _CONVERGENCE)
    converged = status == Status.CONVERGED
    above = converged & (residual > np.float32(TOLERANCES))
    grown = residual[:, 1:] > residual[:, :-1] * (1 + _RELATIVE_SLACK) + _ABSOLUTE_SLACK
    problems = []
    if above.any():
        problems.append(f"{int(above.sum())} residuals above their tolerance")
    if grown.any():
        problems.append(f"{int(grown.sum())} residuals grew with a smaller tolerance")
    if not np.isfinite(residual).all():
        problems.append("residuals that are not finite")
    if not explicit and not converged[:, 0].any():
        problems.append(f"no example met the tolerance {TOLERANCES[0]} in {DIAL_MAX_STEPS} steps")
    summary = ", ".join(
        f"{tolerance:g}: {residual[:, column].max():.1e} in {steps[:, column].max()}"
        for column, tolerance in enumerate(TOLERANCES)
    )
    text = f"{int(converged.sum())} of {converged.size} converged; largest by tolerance: {summary}"
    if problems:
        text = f"{'; '.join(problems)}. {text}"
    values = {
        "tolerances": list(TOLERANCES),
        "residuals": residual.tolist(),
        "steps": steps.tolist(),
        "status": status.tolist(),
    }
    return Check(f"{runtime}: tolerance dial in one call", not problems, text, values)


_CONVERGENCE = ("residual", "steps", "status")


def _request(name, signature, tokens, lengths, tolerances=None, max_steps=None) -> Request:
    batch = len(tokens)
    inputs = {
        "tokens": np.asarray(tokens, np.int32),
        "lengths": np.asarray(lengths, np.int32),
        "tolerance": np.asarray(np.zeros(batch) if tolerances is None else tolerances, np.float32),
        "max_steps": np.asarray(np.zeros(batch) if max_steps is None else max_steps, np.int32),
    }
    return Request(name, signature, inputs)


def _compare(name: str, pairs: Sequence[tuple[str, Outputs, Outputs]], tolerance: float) -> Check:
    worst, worst_text, near, wrong = 0.0, "", [], []
    for label, answer, reference in pairs:
        same = all(answer[field] == reference[field] for field in ("steps", "status"))
        if not same and _rounding_decides(answer, reference, tolerance):
            near.append(label)
            continue
        if not same:
            wrong.append(
                f"{label}: steps {answer['steps']} and {reference['steps']}, status "
                f"{answer['status']} and {reference['status']}, residual "
                f"{answer['residual']:.3e} and {reference['residual']:.3e}"
            )
        (field,) = answer.keys() & _OUTPUT.values()
        difference = np.abs(answer[field] - reference[field]).max(initial=0.0)
        # Not finite is worse than any number.
        difference = float(difference) if np.isfinite(difference) else float("inf")
        if difference > worst:
            worst = difference
            worst_text = (
                f"{label}: log probabilities differ by {worst:.1e} after {answer['steps']} steps, "
                f"status {answer['status']}, residual {answer['residual']:.1e} (where "
                "the solver does not settle, it amplifies rounding)"
            )
    compared = len(pairs) - len(near)
    text = (
        f"largest difference of log probabilities {worst:.1e} (limit {LIMIT:g}) over {compared} "
        f"examples; {len(near)} stopped a step apart within rounding of the tolerance"
    )
    if worst > LIMIT:
        wrong.append(worst_text)
    if not compared:
        wrong.append("every example stopped apart, so that nothing was compared")
    if wrong:
        text = f"{wrong[0]} ({len(wrong)} findings). {text}"
    values = {"largest_difference": worst, "compared": compared, "near": near, "wrong": wrong}
    return Check(name, not wrong, text, values)


def _rounding_decides(answer: Outputs, reference: Outputs, tolerance: float) -> bool:
    """Whether two solves of one example stopped apart because of rounding."""

    def near(a: float, b: float) -> bool:
        return abs(a - b) <= _RELATIVE_SLACK * abs(b) + _ABSOLUTE_SLACK

    first = min(answer, reference, key=lambda solved: solved["steps"])
    if first["status"] == Status.CONVERGED and answer["steps"] != reference["steps"]:
        return near(float(first["residual"]), tolerance)
    # With equal steps the last residual met the tolerance in one solve; or progress ended at one.
    residuals = float(answer["residual"]), float(reference["residual"])
    return near(*residuals) and (
        Status.STAGNATED in (answer["status"], reference["status"]) or near(residuals[0], tolerance)
    )
