"""A LiteRT file beside a version's card, and its comparison with the model."""

import json

import keras
import numpy as np
import pytest

import tfdeq
from tests.support.cases import DenseCell
from tfdeq.serving.edge.converted import NAMES
from tfdeq.serving.edge.litert import convert_kind
from tfdeq.serving.kinds.keras_kind import KerasKind
from tfdeq.serving.verification import edge_checks
from tfdeq.serving.versions import manifest, model_card
from tfdeq.serving.versions.saved_model import export_kind

ROWS = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def kind():
    keras.utils.set_random_seed(0)
    x = keras.Input((4,), name="x")
    h = keras.layers.Dense(12)(x)
    model = keras.Model(x, tfdeq.DEQLayer(DenseCell(12), tfdeq.Anderson(tolerance=1e-3))(h))
    return KerasKind(model, examples={"x": ROWS})


@pytest.fixture(scope="module")
def version(kind, tmp_path_factory):
    edge = {name: convert_kind(kind, precision=precision) for precision, name in NAMES.items()}
    return export_kind(kind, tmp_path_factory.mktemp("output"), edge=edge, batch_sizes=[1])


@pytest.fixture(scope="module")
def asked(kind, version):
    return kind.questions(_card(version))


def _card(version):
    return json.loads((version / model_card.FOLDER / model_card.NAME).read_text())


def _entry(version, precision):
    return _card(version)["edge"][NAMES[precision]]


def _check(asked, path, described):
    return edge_checks.check(path, described, asked.batches, asked.references, asked.tolerance)


@pytest.mark.parametrize("precision", NAMES)
def test_a_file_is_part_of_its_version_and_verified(version, asked, precision):
    name = f"{model_card.FOLDER}/{NAMES[precision]}"
    described = _entry(version, precision)
    assert described["precision"] == precision
    assert name in manifest.read(version)
    assert described["bytes"] == (version / name).stat().st_size
    found = _check(asked, version / name, described)
    assert found.passed, found.text


@pytest.mark.parametrize("precision", NAMES)
def test_a_file_of_other_weights_is_found(version, asked, kind, precision, tmp_path):
    variable = kind.model.trainable_variables[0]
    before = variable.numpy()
    try:
        variable.assign(before + 0.2)
        (tmp_path / "m.tflite").write_bytes(convert_kind(kind, precision=precision).content)
    finally:
        variable.assign(before)
    found = _check(asked, tmp_path / "m.tflite", _entry(version, precision))
    assert not found.passed


def test_a_file_of_other_sizes_is_not_called_verified(version, asked):
    described = {"precision": "float32", "signatures": {"serving_default": {"x": [1, 5]}}}
    found = _check(asked, version / model_card.FOLDER / NAMES["float32"], described)
    assert not found.passed
    assert "nothing was compared" in found.text
