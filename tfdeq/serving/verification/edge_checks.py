"""Checks of a version's converted files, against the Keras model that the version was made from."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfdeq.serving.edge.converted import FORMATS
from tfdeq.serving.edge.interpreter import Interpreter
from tfdeq.serving.server.isolated import Request
from tfdeq.serving.verification import checks
from tfdeq.serving.verification.checks import Check

# Largest difference of answers whose weights are rounded, relative if the answer is above 1. An int8 is at
# most 1/254 of its row's largest value away, a float16 2^-11 of its own.
_ROUNDED_LIMITS = {"float16": 0.05, "int8": 0.5}


def check(
    path: pathlib.Path,
    described: Mapping[str, Any],
    batches: Sequence[Request],
    references: Sequence[Sequence[checks.Outputs | None]],
    tolerance: float,
) -> Check:
    """Asks a converted file those of the requests that have its sizes, and compares with the Keras model.

    With float32 weights answers must be within the limit of the other runtimes, with equal steps and
    status. With rounded weights another model answers, so only its outputs are compared, with a wide
    limit; the largest difference is part of the check's values.

    Args:
        described: the file's entry in the card.
        batches, references, tolerance: requests, the Keras model's answers, and its own tolerance.
    """
    title = FORMATS[described["format"]].title
    name = f"{title}, {described['precision']}: equal to the Keras model"
    try:
        interpreter = Interpreter(path)
    except ImportError as error:  # what was not asked is not verified
        return Check(name, False, str(error), {})
    requests, answers = [], []
    for request, expected in zip(batches, references, strict=True):
        shapes = described["signatures"].get(request.signature)
        if shapes is not None and _fits(request, shapes):
            requests.append(request)
            answers.append(expected)
    if not requests:
        text = "no request has the file's sizes, so nothing was compared"
        return Check(name, False, f"{text}; convert it with the sizes of the test data", {})
    outputs = [interpreter.answer(request.signature, dict(request.inputs)) for request in requests]
    if described["precision"] == "float32":
        found = checks.check_against_model(requests, outputs, answers, tolerance, title)
        return found._replace(name=name)
    return _check_rounded(name, outputs, answers, _ROUNDED_LIMITS[described["precision"]])


def _fits(request: Request, shapes: Mapping[str, list[int]]) -> bool:
    return all(
        np.shape(request.inputs[name])[1:] == tuple(shape[1:]) for name, shape in shapes.items()
    )


def _check_rounded(name: str, outputs: list, references: list, limit: float) -> Check:
    worst = 0.0
    for output, rows in zip(outputs, references, strict=True):
        for row, expected in enumerate(rows):
            # Answers that did not converge depend on rounding alone.
            if expected is None or expected["status"] or output["status"][row]:
                continue
            for field in expected.keys() - checks.CONVERGENCE.keys():
                difference = np.abs(output[field][row] - expected[field])
                size = np.maximum(1, np.abs(expected[field]))
                worst = max(worst, float(np.max(difference / size, initial=0.0)))
    text = f"largest difference of converged answers {worst:.1e} (limit {limit:g})"
    return Check(name, worst <= limit, text, {"largest_difference": worst})
