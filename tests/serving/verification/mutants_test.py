"""Verification refuses versions that were changed, each in one way, and reports the problem.

The version and its Keras model are the same in all tests, so the model's functions are traced only
once.
"""

import json

import pytest

from tests.support.mutants import FILES, MUTANTS, Mutant
from tfdeq.serving.kinds.language_model_kind import LanguageModelKind
from tfdeq.serving.server import isolated
from tfdeq.serving.verification import language_model_checks, verify

# Damaged files, with which no version is loaded; the others are slow.
FAST = ("a file is missing", "weights of another training")


@pytest.fixture(scope="module")
def memory():
    """Data that do not depend on the version: traced signatures, and the Keras model's graphs."""
    return {}


@pytest.fixture
def verification(verified_run, memory, monkeypatch):
    """Verifies a version of the run, only in the C++ runtime; asks=False: without requests."""

    def kept(name, make):
        def call(*arguments, **settings):
            key = name, json.dumps([*map(str, arguments[1:]), settings], default=str)
            if key not in memory:
                memory[key] = make(*arguments, **settings)
            return memory[key]

        return call

    signatures = kept("trace", LanguageModelKind.signatures)
    monkeypatch.setattr(LanguageModelKind, "signatures", signatures)
    keras_model = kept("keras", language_model_checks.KerasModel)
    monkeypatch.setattr(language_model_checks, "KerasModel", keras_model)

    def run(path, asks=True):
        runtimes = {"c": isolated.RUNTIMES["c"]} if asks else {}
        monkeypatch.setattr(isolated, "RUNTIMES", runtimes)
        found, _, _ = verify.verify_run(verified_run, path, str(verified_run / "prepared"))
        return {check.name: check.text for check in found if not check.passed}

    return run


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in MUTANTS],
)
def test_mutants_are_refused(name, verified_run, verification, tmp_path):
    mutant: Mutant = MUTANTS[name]
    path = mutant.make(verified_run / "export" / "1", tmp_path)
    failed = verification(path, asks=mutant.asks)
    assert mutant.found_by in failed, failed
    assert (FILES in failed) is not mutant.resealed


@pytest.mark.slow
def test_the_version_itself_passes(verified_run, verification):
    assert verification(verified_run / "export" / "1") == {}
    assert len(MUTANTS) >= 20
    assert sum(mutant.resealed for mutant in MUTANTS.values()) >= 20
