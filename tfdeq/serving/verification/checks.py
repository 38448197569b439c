"""Checks of any served model's answers: comparisons, each with its finding in one line."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfdeq import Status
from tfdeq.serving.server import runtime
from tfdeq.serving.server.isolated import Request
from tfdeq.serving.signatures.signature import CONVERGENCE
from tfdeq.serving.versions import manifest

BATCHES = (1, 3, 8)
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
DIAL_EXAMPLES = 3
NEVER = 1e-30  # a tolerance that nothing meets
# Tolerance and max_steps of requests: only one, only the other, both.
ASKED_SETTINGS = ((1e-1, 0), (1e-4, 0), (0.0, 1), (0.0, 2), (1e-1, 2), (NEVER, 3))
# Largest difference between two computations of the same answer, relative if the answer is above 1.
LIMIT = 1e-4
# Residuals this close to a tolerance, or to each other, count as equal, because rounding decides
# then.
_RELATIVE_SLACK, _ABSOLUTE_SLACK = 2e-3, 1e-6

Outputs = Mapping[str, np.ndarray]
Pair = tuple[str, Outputs, Outputs]  # label, answer, reference


class Check(NamedTuple):
    """One finding of a verification."""

    name: str
    passed: bool
    text: str  # one line: the measurement, or the problem
    values: dict[str, Any]


class Case(NamedTuple):
    """A request in which one example is checked, and another may be invalid."""

    request: Request
    row: int  # the example
    bad_row: int | None = None
    bad_status: int | None = None  # the status that the invalid one must have


def check_against_model(
    requests: Sequence[Request],
    outputs: Sequence[Outputs],
    references: Sequence[Sequence[Outputs | None]],
    tolerance: float,
    runtime: str,
) -> Check:
    """Checks that answers are within LIMIT of the Keras model's, with equal steps and status.

    If only rounding decides whether an example's residual meets the tolerance, the two solves may stop
    one step apart. Such a row is counted as near a tolerance and not compared further.
    """
    pairs, tolerances = [], []
    for request, output, rows in zip(requests, outputs, references, strict=True):
        own = request.inputs["tolerance"]
        for row, reference in enumerate(rows):
            if reference is None:
                continue
            label = f"{request.signature}, {request.name}, row {row}"
            pairs.append((label, _row(output, row), reference))
            tolerances.append(float(own[row]) if own[row] > 0 else tolerance)
    return compare(f"{runtime}: equal to the Keras model", pairs, tolerances)


def check_neighbours(
    cases: Sequence[Case], outputs: Sequence[Outputs], tolerance: float, runtime: str
) -> Check:
    """Checks that an example's answer is the same alone, with any padding and in any batch."""
    alone: dict[str, Outputs] = {}
    pairs, wrong = [], []
    for case, output in zip(cases, outputs, strict=True):
        signature, answer = case.request.signature, _row(output, case.row)
        if signature not in alone:
            alone[signature] = answer
            continue
        pairs.append((f"{signature}, {case.request.name}", answer, alone[signature]))
        if case.bad_row is not None and output["status"][case.bad_row] != case.bad_status:
            wrong.append(
                f"{signature}, {case.request.name}: the example that cannot be answered got the "
                f"status {output['status'][case.bad_row]} instead of {case.bad_status}"
            )
    check = compare(f"{runtime}: independent of padding and neighbours", pairs, tolerance)
    if wrong:
        return check._replace(passed=False, text=f"{wrong[0]}. {check.text}")
    return check


def check_dial(output: Outputs, explicit: bool, runtime: str) -> Check:
    """Checks that converged residuals meet the tolerance, and do not grow as the tolerance falls."""
    shape = (DIAL_EXAMPLES, len(TOLERANCES))
    residual, steps, status = (output[name].reshape(shape) for name in CONVERGENCE)
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
        problems.append(
            f"no example met the tolerance {TOLERANCES[0]} in {steps[:, 0].max()} steps"
        )
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


def check_files(path: pathlib.Path) -> Check:
    """Checks that every file is as in the manifest, and that there are no others."""
    try:
        found = manifest.differences(path)
    except manifest.ChangedVersionError as error:
        return Check("files are whole", False, str(error), {"wrong": [manifest.NAME]})
    text = found.text()
    wrong = sorted(name for names in found for name in names)
    if not wrong:
        text = f"the {len(manifest.read(path))} files' SHA-256 are those of the manifest"
    return Check("files are whole", not wrong, text, {"wrong": wrong})


def above_limit(limit: int) -> tuple[float, int]:
    """Returns the tolerance and max_steps of a request above a version's max_steps_limit."""
    return NEVER, limit + 7


def comparable(
    request: Request, rows: Sequence[Outputs], limit: int
) -> list[dict[str, np.ndarray] | None]:
    """Returns references for comparison: for requests above the limit, only steps and status.

    After so many steps beyond float32's precision, an answer depends on rounding. If the Keras model
    ends earlier, because its iterates repeat themselves, nothing is compared.
    """
    found: list[dict[str, np.ndarray] | None] = []
    for asked, row in zip(request.inputs["max_steps"], rows, strict=True):
        kept = dict(row)
        if asked > limit:
            kept = {name: row[name] for name in CONVERGENCE}
        found.append(kept if asked <= limit or row["status"] == Status.MAX_STEPS else None)
    return found


def check_ops(path: pathlib.Path, runnable: Iterable[str]) -> Check:
    """Checks that TensorFlow's C++ runtime, which the stock server uses, has every op."""
    used = runtime.read_ops(path)
    lacking = sorted(used - set(runnable))
    text = f"the {len(used)} ops that the graph uses are in TensorFlow's C++ runtime"
    if lacking:
        text = f"ops that a stock server lacks: {', '.join(lacking)}"
    return Check("ops of the stock server", not lacking, text, {"lacking": lacking})


def check_warm_up(requests: Sequence[Request], outputs: Sequence[Outputs], runtime: str) -> Check:
    """Checks that every warm-up record was answered; a server does not load a version if one fails."""
    name = f"{runtime}: answers the warm-up records"
    bad = [
        f"{request.signature}, batch of {len(output['status'])}"
        for request, output in zip(requests, outputs, strict=True)
        if (output["status"] < 0).any()
    ]
    text = f"{len(requests)} records answered"
    if bad:
        text = f"records that hold an invalid example: {'; '.join(bad)}"
    return Check(name, not bad, text, {"records": len(requests)})


def compare(name: str, pairs: Sequence[Pair], tolerance: float | Sequence[float]) -> Check:
    """Compares answers field by field; see `check_against_model`. tolerance: for all, or for each."""
    worst, worst_text, near, wrong = 0.0, "", [], []
    tolerances = np.broadcast_to(tolerance, len(pairs))
    for (label, answer, reference), own in zip(pairs, tolerances, strict=True):
        same = all(answer[field] == reference[field] for field in ("steps", "status"))
        if not same and _rounding_decides(answer, reference, float(own)):
            near.append(label)
            continue
        if not same:
            wrong.append(
                f"{label}: steps {answer['steps']} and {reference['steps']}, status "
                f"{answer['status']} and {reference['status']}, residual "
                f"{answer['residual']:.3e} and {reference['residual']:.3e}"
            )
        for field in reference.keys() - CONVERGENCE.keys():
            difference = _difference(answer[field], reference[field])
            if difference > worst:
                worst = difference
                worst_text = (
                    f"{label}: {field} differ by {worst:.1e} after {answer['steps']} steps, "
                    f"status {answer['status']}, residual {answer['residual']:.1e} (where "
                    "the solver does not settle, it amplifies rounding)"
                )
    compared = len(pairs) - len(near)
    text = (
        f"largest difference {worst:.1e} (limit {LIMIT:g}) over {compared} "
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


def _row(output: Outputs, row: int) -> dict[str, np.ndarray]:
    return {name: value[row] for name, value in output.items()}


def _difference(answer: np.ndarray, reference: np.ndarray) -> float:
    """Returns the largest difference; if one is longer along its first axis, the rest must be zeros.

    For integers, such as tokens, any difference counts as infinite.
    """
    whole = np.asarray(reference).dtype.kind in "iub"
    answer, reference = np.asarray(answer, np.float64), np.asarray(reference, np.float64)
    if answer.ndim and len(answer) != len(reference):
        longest = max(len(answer), len(reference))
        answer, reference = (
            np.pad(one, [(0, longest - len(one)), *[(0, 0)] * (one.ndim - 1)])
            for one in (answer, reference)
        )
    if whole:
        return 0.0 if np.array_equal(answer, reference) else float("inf")
    scale = np.maximum(1.0, np.abs(reference))
    difference = (np.abs(answer - reference) / scale).max(initial=0.0)
    # A value that is not finite counts as an infinite difference.
    return float(difference) if np.isfinite(difference) else float("inf")


def _rounding_decides(answer: Outputs, reference: Outputs, tolerance: float) -> bool:
    """Whether two solves of the same example stopped at different steps because of rounding."""

    def near(a: float, b: float) -> bool:
        return abs(a - b) <= _RELATIVE_SLACK * abs(b) + _ABSOLUTE_SLACK

    first = min(answer, reference, key=lambda solved: solved["steps"])
    if first["status"] == Status.CONVERGED and answer["steps"] != reference["steps"]:
        return near(float(first["residual"]), tolerance)
    # With equal steps, only one solve met the tolerance with its last residual, or only one
    # stagnated.
    residuals = float(answer["residual"]), float(reference["residual"])
    return near(*residuals) and (
        Status.STAGNATED in (answer["status"], reference["status"]) or near(residuals[0], tolerance)
    )
