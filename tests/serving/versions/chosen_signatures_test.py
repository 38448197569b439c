"""Versions with some of a model's signatures, and what each signature costs."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import contracting_language_model
from tfdeq.serving.kinds.keras_kind import KerasKind
from tfdeq.serving.kinds.language_model_kind import LanguageModelKind
from tfdeq.serving.server import isolated
from tfdeq.serving.signatures.signature import SETTING_SPECS, Signature, trace
from tfdeq.serving.verification import verify
from tfdeq.serving.versions import costs, saved_model

ROWS = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
SPEC = tf.TensorSpec([None, 3], tf.float32, "x")
STREAM = np.random.default_rng(1).integers(0, 13, 300).astype(np.int32)


def _keras_model():
    keras.utils.set_random_seed(0)
    x, z, v = keras.Input((3,), name="x"), keras.Input((3,)), keras.Input((3,))
    cell = keras.Model([z, v], keras.ops.tanh(0.5 * z + v))
    return keras.Model(x, tfdeq.DEQLayer(cell, "fixed_point_iteration")(x))


def _card(path):
    return json.loads((path / "assets.extra" / "model_card.json").read_text())


@pytest.mark.parametrize(
    ("only", "written"),
    [
        ([], ["serving_default"]),
        (["step"], ["serving_default", "encode", "step"]),
        pytest.param(
            ["encode", "serving_default"], ["serving_default", "encode"], marks=pytest.mark.slow
        ),
    ],
)
def test_what_is_written(only, written, tmp_path):
    model = _keras_model()
    path = saved_model.export(model, tmp_path, examples={"x": ROWS}, batch_sizes=[1], only=only)
    card = _card(path)
    assert list(card["signatures"]) == written
    left_out = [name for name in ("encode", "step") if name not in written]
    assert card["signatures_left_out"] == left_out


@pytest.mark.slow
def test_a_version_is_verified_by_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(isolated, "RUNTIMES", {"c": isolated.RUNTIMES["c"]})
    kind = KerasKind(_keras_model(), examples={"x": ROWS})
    path = saved_model.export_kind(kind, tmp_path, only=["encode"], batch_sizes=[1, 3])
    found, _ = verify.verify_kind(kind, path)
    assert all(check.passed for check in found), [check.text for check in found]
    # A signature that is missing, but was not left out on purpose, is noticed.
    card = {**_card(path), "signatures_left_out": []}
    assert "step" in kind.expected(card)["signatures"]


@pytest.mark.slow
def test_a_version_of_a_language_model_is_verified_by_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(isolated, "RUNTIMES", {"c": isolated.RUNTIMES["c"]})
    model = contracting_language_model(vocabulary_size=13, length=8)
    kind = LanguageModelKind(model, STREAM[:96].reshape(12, 8), STREAM)
    path = saved_model.export_kind(kind, tmp_path, only=["generate"], batch_sizes=[1, 3])
    card = _card(path)
    assert list(card["signatures"]) == ["serving_default", "generate"]
    assert "quality_by_tolerance" not in card  # it would be measured by `score`
    found, _ = verify.verify_kind(kind, path)
    assert all(check.passed for check in found), [check.text for check in found]


def test_names_that_the_model_lacks(tmp_path):
    with pytest.raises(ValueError, match=r"no signature generate.*serving_default, encode, step"):
        saved_model.export(_keras_model(), tmp_path, only=["generate", "step"])
    assert not list(tmp_path.iterdir())
    given = {"x": trace(lambda x: {"y": x}, {"x": SPEC})}
    with pytest.raises(ValueError, match="only are of export's own signatures"):
        saved_model.export(_keras_model(), tmp_path, given, only=["x"])


def test_costs_of_a_small_and_a_large_signature():
    signatures = KerasKind(_keras_model()).signatures(batching=None)
    unmeasured = costs.measured(signatures, None)
    assert "answer_milliseconds" not in unmeasured["step"]
    found = costs.measured(signatures, {"x": ROWS})
    for name, cost in found.items():
        assert cost["graph_bytes"] == unmeasured[name]["graph_bytes"]
        assert cost["graph_bytes"] > 1000
        assert 0 < cost["answer_milliseconds"] < 1000
        assert costs.line(name, cost).startswith(f"{name}: ")
    # One operation beside a solve.
    small = Signature(trace(lambda x: {"y": 2 * x}, {"x": SPEC}), {}, {})
    assert costs.measured({"small": small}, None)["small"]["graph_bytes"] < 1000


def test_a_signature_that_fails_is_not_published(tmp_path):
    def broken(x, **settings):
        rows = tf.shape(x)[:1]
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(x > 9e9), [rows])]):
            return {"y": 1.0 * x}

    specs = {"x": SPEC, **SETTING_SPECS}
    signatures = {"serving_default": Signature(trace(broken, specs), {}, {})}
    kind = KerasKind(_keras_model(), examples={"x": ROWS})
    with pytest.raises(tf.errors.InvalidArgumentError):
        saved_model.export_kind(kind, tmp_path, signatures, with_costs=True)
    assert not list(tmp_path.iterdir())
