"""Properties of all signatures of the language models in the registry."""

import types

import numpy as np
import pytest

from tests.support.memory_cases import LENGTH, equilibrium
from tfdeq.serving.signatures import text
from tfdeq.serving.signatures.signature import CONVERGENCE, SETTINGS
from tfdeq.serving.signatures.text import Step
from tfdeq.serving.signatures.text.text_signature import Reading
from tfdeq.serving.signatures.text_requests import TEXT
from tools import signature_table


@pytest.fixture(scope="module")
def model():
    """A model with all signatures."""
    return equilibrium(span=4)


@pytest.mark.parametrize("name", text.REGISTRY)
def test_a_signature_says_what_belongs_to_it(name, model):
    signature = text.get(name)
    assert signature.name == name
    assert type(signature).__module__ == f"{text.__name__}.{name}"
    assert signature in text.of(model)
    further = {each.spec.name: each for each in signature.inputs(model)}
    assert not further.keys() & {*TEXT, *SETTINGS}
    assert all(each.spec.shape[0] is None and each.meaning for each in further.values())
    assert signature.outputs(model).keys() > CONVERGENCE.keys()
    asked = signature.asked_inputs(model, 3)
    assert asked.keys() == further.keys()
    warm_up = signature.warm_up_inputs(model, np.full([3], LENGTH, np.int32))
    assert warm_up.keys() <= further.keys()
    for given in (asked, warm_up):
        for place, value in given.items():
            spec = further[place].spec
            assert len(value) == 3
            assert value.dtype == spec.dtype.as_numpy_dtype
            assert spec.shape.is_compatible_with(value.shape)


def test_names_that_are_not_registered():
    with pytest.raises(ValueError, match=r"signature 'encoder'.*Known ones: serving_default, "):
        text.get("encoder")


def test_texts_that_fill_a_request_are_read_together_in_parts():
    calls = []

    class Reader:
        model = types.SimpleNamespace(vocabulary_size=2**20)

        def read(self, given):
            calls.append(given["tokens"].shape)
            nothing = np.broadcast_to(np.float32(-1), [8, 2**20])
            count, length = given["tokens"].shape
            return [Reading(nothing[:length], None, {}, None)] * count

    inputs = {"tokens": np.zeros([5, 8], np.int32), "lengths": np.full([5], 8, np.int32)}
    found = text.get("score").references(Reader(), inputs)
    assert calls == [(2, 8), (2, 8), (1, 8)]  # 2²⁴ numbers each
    assert [each["log_likelihood"].tolist() for each in found] == [[0] + [-1] * 7] * 5
    calls.clear()
    text.get("score").references(Reader(), {**inputs, "lengths": np.int32([8, 8, 8, 8, 7])})
    assert calls == [(1, 8)] * 4 + [(1, 7)]


def test_the_documents_table_is_that_of_the_registry(monkeypatch):
    document = signature_table.DOCUMENT.read_text(encoding="utf-8")
    written = signature_table.written(document)
    assert written == document, "python -m tools.signature_table"

    class Another(Step):
        """The added signature."""

        name = "another"
        models = "some"

    monkeypatch.setitem(text.REGISTRY, "another", Another())
    row = (
        "| `another` | The added signature | some | `equilibrium` [B, S, d], `equilibrium_lengths` | "
        "`log_probabilities` [B, V], `equilibrium` [B, T, d] |\n"
    )
    assert signature_table.written(document) == written.replace("\n<!-- end", f"{row}\n<!-- end")
    with pytest.raises(ValueError, match="No place for the table"):
        signature_table.written("# Serving")
