"""Checks of a model card: each finding, on constructed cards."""

import numpy as np
import pytest

from tfdeq.serving.server.isolated import Request
from tfdeq.serving.verification import card_checks, run_checks

TENSOR = {"dtype": "float32", "shape": [None, 3]}
SIGNATURE = {"inputs": {"x": TENSOR}, "outputs": {"y": TENSOR}, "max_request_values": 100}
CARD = {
    "signatures": {"serving_default": SIGNATURE},
    "allowed_batch_sizes": [1, 4],
    "warm_up_records": True,
}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, ""),
        ({"signatures": None}, "no signature serving_default"),
        ({"signatures": {"score": SIGNATURE}}, "no signature serving_default"),
        ({"signatures": {"serving_default": {"inputs": {}}}}, "outputs of serving_default"),
        ({"signatures": {"serving_default": {**SIGNATURE, "inputs": {"x": {}}}}}, "inputs of"),
        ({"signatures": {"serving_default": 3}}, "inputs of"),
        ({"max_steps_limit": 0}, "max_steps_limit is 0"),
        ({"max_steps_limit": "many"}, "max_steps_limit is 'many'"),
    ],
)
def test_cards_that_cannot_be_read(change, problem):
    found = card_checks.problem_of({**CARD, **change})
    assert problem in found
    assert bool(found) == bool(problem)


def records_of(*sizes):
    return [
        Request("warm-up", "serving_default", {"x": np.zeros([size, 3], np.float32)})
        for size in sizes
    ]


@pytest.mark.parametrize(
    ("sizes", "promised", "finding"),
    [
        ([1, 4], True, None),
        ([4], True, "1 records, the card promises 2; missing: serving_default, batch of 1"),
        ([], True, "0 records, the card promises 2; missing"),
        ([1, 4, 4], True, "3 records, the card promises 2"),
        ([], False, None),
        ([1], False, "1 records, the card promises 0"),
    ],
)
def test_warm_up_records(sizes, promised, finding):
    card = {**CARD, "warm_up_records": promised}
    check = card_checks.check_records(records_of(*sizes), card)
    assert check.passed == (finding is None)
    assert finding is None or check.text.startswith(finding)


@pytest.mark.parametrize(
    ("named", "there", "run", "finding"),
    [
        (None, None, None, None),
        ("vocabulary.txt", "a\nb\n", "a\nb\n", None),
        ("vocabulary.txt", "b\na\n", "a\nb\n", "differs from the run's at the ids 0, 1"),
        ("vocabulary.txt", None, "a\nb\n", "differs from the run's"),
        (None, None, "a\nb\n", "the card names None, the run has vocabulary.txt"),
        ("vocabulary.txt", "a\n", None, "the run has no words"),
        (None, "a\n", None, "differs from the run's"),
    ],
)
def test_words(named, there, run, finding, tmp_path):
    (tmp_path / "assets.extra").mkdir()
    if there is not None:
        (tmp_path / "assets.extra" / "vocabulary.txt").write_text(there)
    check = run_checks.check_words(tmp_path, {"vocabulary": {"size": 2, "file": named}}, run)
    assert check.passed == (finding is None)
    assert finding is None or finding in check.text


def test_what_the_card_says_of_the_run():
    run = {
        "unit": "byte",
        "dataset": "text",
        "flags": {"width": 8},
        "metrics": {"test": {"bits": 2.0}, "baseline": {"bits": 2.5}},
    }
    # A baseline trained since then is not a difference.
    card = {**run, "metrics": {"test": {"bits": 2.0}}}
    assert run_checks.check_run(card, run).passed
    for change in ({"metrics": {"test": {"bits": 1.0}}}, {"unit": "word"}, {"flags": {"width": 9}}):
        check = run_checks.check_run({**card, **change}, run)
        assert not check.passed
    assert "flags.width: the card says 9, it is 8" in check.text


def test_a_request_above_the_limit():
    asked = card_checks.over_limit_request(CARD)
    assert asked.inputs["x"].shape == (34, 3)  # 102 numbers without the answer
    long = {**SIGNATURE, "inputs": {"x": {"dtype": "int32", "shape": [None, None, 2]}}}
    asked = card_checks.over_limit_request({"signatures": {"score": long}})
    assert asked.inputs["x"].shape == (1, 101, 2)
    assert asked.may_fail
    for limit in (None, 2**30, "x"):
        card = {"signatures": {"score": {**SIGNATURE, "max_request_values": limit}}}
        assert card_checks.over_limit_request(card) is None


@pytest.mark.parametrize(
    ("error", "finding"),
    [
        ("assertion failed: may have 100 numbers together: 103", None),
        (None, "more than 100 numbers, the card's limit, was answered"),
        ("assertion failed: may have 1000 numbers together", "refused in other words"),
    ],
)
def test_what_is_said_above_the_limit(error, finding):
    check = card_checks.check_over_limit(CARD, error, "c")
    assert check.passed == (finding is None)
    assert finding is None or finding in check.text
