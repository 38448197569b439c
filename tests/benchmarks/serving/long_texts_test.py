"""The measurement of short texts beside a long one."""

import json
import pathlib

import numpy as np

from benchmarks.serving import long_texts

ROOT = pathlib.Path(__file__).absolute().parents[3]


class Model:
    """Answers at once."""

    def short(self, signature):
        pass

    def long(self, how):
        return np.int32([1, 2, 3])


def test_calls_run_together_and_return_in_order():
    seconds, results = long_texts.together([lambda: 1, lambda: 2])
    assert results == [1, 2]
    assert len(seconds) == 2


def test_every_case_is_measured_in_each_turn():
    found = long_texts.measure(Model(), 2)
    for name in ("median", "last"):
        assert found["seconds"][name].keys() == long_texts.CASES.keys()
    assert found["seconds"]["long"].keys() == {"beside one call", "beside segments"}
    assert all(ratio > 0 for ratio in found["ratios"].values())
    assert found["same_tokens"]


RESULTS = {
    "machine": "a CPU",
    "turns": 7,
    "seconds": {
        "median": dict(zip(long_texts.CASES, (0.05, 0.8, 0.06, 0.055), strict=True)),
        "last": dict(zip(long_texts.CASES, (0.06, 0.9, 0.07, 0.066), strict=True)),
        "long": {"beside one call": 0.8, "beside segments": 0.7},
    },
    "ratios": {
        "median, one call": 13.3,
        "median, segments": 1.1,
        "last, one call": 12.9,
        "last, segments": 1.1,
        "long": 0.875,
    },
    "same_tokens": True,
}


def test_the_section_is_the_documents_last_and_is_replaced():
    document = long_texts.with_section("# Costs\n\nText.\n", RESULTS)
    assert document.startswith("# Costs\n\nText.\n\n## Short texts beside a long one\n")
    assert "| in segments | 50 | 55 | 1.10 | 60 | 66 | 1.10 | 700 |" in document
    assert long_texts.with_section(document, RESULTS) == document
    assert long_texts.with_section(document, None) == "# Costs\n\nText.\n"


def test_the_document_has_the_section_of_the_results():
    results = json.loads((ROOT / long_texts.RESULTS).read_text())
    document = (ROOT / "docs" / "serving_benchmarks.md").read_text()
    assert document == long_texts.with_section(document, results)
