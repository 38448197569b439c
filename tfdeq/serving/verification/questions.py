"""The requests to a version in each runtime, and the checks of its files, card and answers."""

import concurrent.futures
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras

from tfdeq.programs.paths import expanded
from tfdeq.programs.workdir import read_json
from tfdeq.serving.server import isolated
from tfdeq.serving.server.isolated import Request
from tfdeq.serving.verification import (
    card_checks,
    checks,
    conversation_checks,
    edge_checks,
    language_model_options,
    loading_checks,
    quality_checks,
)
from tfdeq.serving.verification.checks import Check
from tfdeq.serving.versions import model_card, warm_up


class Questions(NamedTuple):
    """The requests to a version, and the expected answers."""

    batches: list[Request]
    references: list[list[checks.Outputs | None]]  # the Keras model's answers, a list per request
    cases: list[checks.Case]
    dial: Request
    tolerance: float  # the model's own
    explicit: bool = False  # whether nothing is solved
    invalid: Sequence[Request] = ()
    conversation: conversation_checks.Conversation | None = None
    quality: quality_checks.Quality | None = None


def ask(
    model: keras.Model,
    path: str | os.PathLike,
    expected: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    questions: Callable[[Mapping[str, Any]], Questions],
) -> tuple[list[Check], dict[str, Any]]:
    """Sends the requests to a version and makes all possible checks; see `tfdeq.serving.verify`.

    Args:
        expected: card -> the card's entries according to the model.
        questions: card -> the requests.
    """
    path = expanded(path)
    found = [checks.check_files(path)]
    if not found[0].passed:
        return found, {}
    card = read_json(path / model_card.FOLDER / model_card.NAME) or {}
    problem = card_checks.problem_of(card)
    if problem:
        return [*found, Check(card_checks.NAME, False, problem, {})], {}
    records = [Request("warm-up", *record) for record in warm_up.read(path)]
    asked = questions(card)
    requests = {
        # Only one runtime gets the largest requests, because both read the same graph.
        runtime: _requests(asked, records, card, alone=place == 0)
        for place, runtime in enumerate(isolated.RUNTIMES)
    }
    with concurrent.futures.ThreadPoolExecutor() as pool:
        started = {
            runtime: pool.submit(
                isolated.answer,
                path,
                [request for part in parts for request in part],
                runtime,
                _seconds(card, parts),
            )
            for runtime, parts in requests.items()
        }
        # Meanwhile, the checks that need no answers.
        found += [
            card_checks.check_card(expected, path, card),
            card_checks.check_records(records, card),
            loading_checks.check_loaded(model, path),
        ]
        answers = {runtime: future.result() for runtime, future in started.items()}
    if "c" in answers:
        found.append(checks.check_ops(path, answers["c"].facts.pop("runnable_ops")))
    for name, described in (card.get("edge") or {}).items():
        found.append(
            edge_checks.check(
                path / model_card.FOLDER / name,
                described,
                asked.batches,
                asked.references,
                asked.tolerance,
            )
        )
    for runtime, answer in answers.items():
        outputs = iter(answer.outputs)
        parts = [[next(outputs) for _ in part] for part in requests[runtime]]
        found += _check_answers(asked, requests[runtime], parts, card, runtime)
    return found, {runtime: answer.facts for runtime, answer in answers.items()}


def _requests(
    asked: Questions, records: list[Request], card: Mapping[str, Any], alone: bool
) -> list[list[Request]]:
    """Returns the groups of requests to a runtime, in the order that `_check_answers` expects."""
    over = card_checks.over_limit_request(card) if alone else None
    return [
        asked.batches,
        [case.request for case in asked.cases],
        [asked.dial],
        records,
        asked.invalid,
        [] if asked.conversation is None else asked.conversation.requests,
        asked.quality.requests() if alone and asked.quality is not None else [],
        [] if over is None else [over],
    ]


def _check_answers(
    asked: Questions,
    requests: list[list[Request]],
    outputs: list[list[checks.Outputs]],
    card: Mapping[str, Any],
    runtime: str,
) -> list[Check]:
    batches, cases, (dial,), records, invalid, calls, quality_rows, over = outputs
    found = [
        checks.check_against_model(
            asked.batches, batches, asked.references, asked.tolerance, runtime
        ),
        checks.check_neighbours(asked.cases, cases, asked.tolerance, runtime),
        checks.check_dial(dial, asked.explicit, runtime),
    ]
    if records:
        found.append(checks.check_warm_up(requests[3], records, runtime))
    if invalid:
        found.append(language_model_options.check_invalid(asked.invalid, invalid, runtime))
    if asked.conversation is not None:
        found.append(asked.conversation.check(calls, runtime))
    if quality_rows or (asked.quality is not None and runtime == next(iter(isolated.RUNTIMES))):
        found.append(asked.quality.check(quality_rows, runtime))
    if over:
        error = over[0].get("error")
        found.append(
            card_checks.check_over_limit(card, None if error is None else str(error), runtime)
        )
    return found


def _seconds(card: Mapping[str, Any], parts: list[list[Request]]) -> float:
    """Returns a runtime's time limit: XLA compiles each signature for each shape, about ten seconds each."""
    count = sum(map(len, parts))
    return isolated.TIMEOUT_SECONDS + (10 * count if card.get("jit_compile") else 0)
