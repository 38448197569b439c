"""Runs of all kinds, as read by exports and verifications."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import contracting_language_model, fast
from tfdeq.runs import kind
from tfdeq.serving.kinds import runs
from tfdeq.serving.kinds.keras_kind import KerasKind
from tfdeq.serving.kinds.language_model_kind import LanguageModelKind

MEASURES = {"error": "mean_squared_error"}


def classifier(explicit_steps=0):
    keras.utils.set_random_seed(0)
    x, z, v = keras.Input((3,), name="x"), keras.Input((3,)), keras.Input((3,))
    cell = keras.Model([z, v], keras.ops.tanh(0.5 * z + v))
    state = tfdeq.DEQLayer(cell, explicit_steps=explicit_steps)(x)
    return keras.Model(x, keras.layers.Dense(2)(state))


def write(folder, model, **entry):
    """Writes a run's folder with a model and examples, like a trainer."""
    random = np.random.default_rng(0)
    kept = kind.keep(random.normal(size=(9, 3)).astype("float32"), random.normal(size=(9, 2)))
    model.save(folder / "model.keras")
    entry = {**kind.examples(MEASURES, model, kept), **entry}
    (folder / "metrics.json").write_text(json.dumps({"test": {"error": 1.5}, "kind": entry}))
    (folder / "config.json").write_text(json.dumps({"seed": 3}))
    kind.write(folder, kept)
    return kept


@pytest.mark.parametrize("explicit_steps", fast([0], [0, 2]))
def test_a_run_of_examples(explicit_steps, tmp_path):
    model = classifier(explicit_steps)
    kept = write(tmp_path, model)
    found = runs.read(tmp_path)
    assert isinstance(found.kind, KerasKind)
    assert found.card["flags"] == {"seed": 3}
    assert found.card["kind"] == kind.EXAMPLES
    assert found.kind.solves == (not explicit_steps)
    np.testing.assert_array_equal(found.kind.warm_up()["x"], kept.inputs[0])
    table = found.kind.quality()
    assert len(table.tolerances) == (1 if explicit_steps else 6)
    signatures = found.kind.signatures(batching=None, only=[])
    rows = table.measured(signatures["serving_default"])
    expected = np.mean((model(kept.inputs[0], training=False) - kept.targets) ** 2)
    # The last row is the most accurate, or the model's own.
    assert rows[-1]["error"] == pytest.approx(expected, rel=1e-2 if not explicit_steps else 1e-5)
    assert runs.read(tmp_path, data=False).kind.quality() is None


def test_a_run_of_a_model_without_a_solve(tmp_path):
    """A baseline, whose export reports that nothing is solved."""
    x = keras.Input((3,), name="x")
    write(tmp_path, keras.Model(x, keras.layers.Dense(2)(x)))
    found = runs.read(tmp_path)
    assert not found.kind.solves
    assert found.kind.card(None)["max_steps_limit"] is None
    signatures = found.kind.signatures(batching=None)
    assert list(signatures) == ["serving_default"]
    given = {"x": tf.ones([2, 3]), "tolerance": tf.zeros([2]), "max_steps": tf.zeros([2], tf.int32)}
    answer = signatures["serving_default"].function(**given)
    assert answer["steps"].numpy().tolist() == answer["status"].numpy().tolist() == [0, 0]
    with pytest.raises(ValueError, match="calls no tfdeq.DEQLayer"):
        runs.of_model(found.kind.model).signatures()


def test_a_language_model_is_one_whether_the_run_says_so_or_not(tmp_path):
    model = contracting_language_model(vocabulary_size=256, length=8)
    model.save(tmp_path / "model.keras")
    for place in range(3):
        (tmp_path / f"{place}.txt").write_text(f"A text for a window or two, number {place}.\n" * 9)
    config = {"dataset": "text", "files": str(tmp_path / "*.txt")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for metrics in ({}, {"kind": kind.language_model()}):
        (tmp_path / "metrics.json").write_text(json.dumps(metrics))
        found = runs.read(tmp_path, str(tmp_path / "prepared"))
        assert isinstance(found.kind, LanguageModelKind)
        assert (found.card["kind"], found.card["unit"]) == (kind.LANGUAGE_MODEL, "byte")
        assert found.kind.text_length == 8


@pytest.mark.parametrize(
    ("name", "message"),
    [("puzzle", "the kind 'puzzle', which this release"), (None, "does not say what kind of task")],
)
def test_other_kinds_are_refused(name, message, tmp_path):
    write(tmp_path, classifier(), **({"name": name} if name else {}))
    if name is None:
        (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match=message):
        runs.read(tmp_path)


@pytest.mark.slow
def test_examples_by_name_for_a_model_that_does_not_say_its_inputs(tmp_path):
    model = contracting_language_model(vocabulary_size=9, length=6)
    tokens = np.random.default_rng(0).integers(0, 9, (5, 6)).astype("int32")
    kept = kind.keep(tokens, tokens)
    model.save(tmp_path / "model.keras")
    entry = kind.examples({"accuracy": "sparse_categorical_accuracy"}, model, kept, ["tokens"])
    (tmp_path / "metrics.json").write_text(json.dumps({"kind": entry}))
    kind.write(tmp_path, kept)
    found = runs.read(tmp_path).kind
    assert set(found.warm_up()) == {"tokens"}
    signatures = found.signatures(batching=None)
    assert signatures["serving_default"].function.structured_outputs["output_0"].shape[1:] == (6, 9)
