"""A converted file beside a version's card, and its comparison with the model."""

import functools
import json
import sys

import keras
import numpy as np
import pytest

import tfdeq
from tests.support.cases import DenseCell, fast
from tfdeq.serving.edge.converted import FORMATS, format_of
from tfdeq.serving.edge.litert import convert_kind
from tfdeq.serving.kinds.keras_kind import KerasKind
from tfdeq.serving.server.isolated import Request
from tfdeq.serving.signatures.signature import CONVERGENCE
from tfdeq.serving.verification import edge_checks
from tfdeq.serving.versions import manifest, model_card
from tfdeq.serving.versions.saved_model import export_kind

NAMES = FORMATS["litert"].names
ROWS = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def kind():
    keras.utils.set_random_seed(0)
    x = keras.Input((4,), name="x")
    h = keras.layers.Dense(12)(x)
    model = keras.Model(x, tfdeq.DEQLayer(DenseCell(12), tfdeq.Anderson(tolerance=1e-3))(h))
    return KerasKind(model, examples={"x": ROWS})


@pytest.fixture(scope="module")
def files(kind):
    """Returns a function of the precision."""
    return functools.cache(lambda precision: convert_kind(kind, precision=precision))


@pytest.fixture(scope="module")
def asked(kind):
    """A request, and the Keras model's answers, row by row."""
    rows = len(ROWS)
    settings = {"tolerance": np.zeros([rows], np.float32), "max_steps": np.zeros([rows], np.int32)}
    with tfdeq.SolveScope() as scope:
        outputs = {"output_0": kind.model(ROWS)}
    (solution,) = scope.solutions.values()
    outputs.update({name: getattr(solution, name) for name in CONVERGENCE})
    answers = [{name: value[row].numpy() for name, value in outputs.items()} for row in range(rows)]
    return [Request("rows", "serving_default", {"x": ROWS, **settings})], [answers]


def test_the_format_is_that_of_the_name():
    for key, format in FORMATS.items():
        assert all(format_of(f"folder.onnx/{name}") == key for name in format.names.values())


def _check(asked, path, described):
    return edge_checks.check(path, described, *asked, tolerance=1e-3)


@pytest.mark.parametrize("precision", fast(["float32", "int8"], NAMES))
def test_a_file_is_compared_with_its_model(files, asked, precision, tmp_path):
    content, described = files(precision)
    (tmp_path / "m.tflite").write_bytes(content)
    assert described["precision"] == precision
    assert described["bytes"] == len(content)
    found = _check(asked, tmp_path / "m.tflite", described)
    assert found.passed, found.text


@pytest.mark.slow
@pytest.mark.parametrize("precision", fast(["float32"], NAMES))
def test_a_file_of_other_weights_is_found(files, asked, kind, precision, tmp_path):
    variable = kind.model.trainable_variables[0]
    before = variable.numpy()
    try:
        variable.assign(before + 1.0)
        (tmp_path / "m.tflite").write_bytes(convert_kind(kind, precision=precision).content)
    finally:
        variable.assign(before)
    found = _check(asked, tmp_path / "m.tflite", files(precision).described)
    assert not found.passed


def test_a_file_of_other_sizes_is_not_called_verified(files, asked, tmp_path):
    (tmp_path / "m.tflite").write_bytes(files("float32").content)
    described = {
        "format": "litert",
        "precision": "float32",
        "signatures": {"serving_default": {"x": [1, 5]}},
    }
    found = _check(asked, tmp_path / "m.tflite", described)
    assert not found.passed
    assert "nothing was compared" in found.text


def test_a_file_without_its_runtime_is_not_called_verified(asked, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # an import of it then fails
    described = {"format": "onnx", "precision": "float32", "signatures": {}}
    found = _check(asked, tmp_path / "m.onnx", described)
    assert not found.passed
    assert found.text.startswith("ONNX files need the package onnxruntime. Install it: pip install")


@pytest.mark.slow
def test_files_are_part_of_their_version(kind, files, tmp_path):
    version = export_kind(kind, tmp_path, edge=files, batch_sizes=[1])
    card = json.loads((version / model_card.FOLDER / model_card.NAME).read_text())
    for name, file in files.items():
        assert card["edge"][name] == file.described
        assert f"{model_card.FOLDER}/{name}" in manifest.read(version)
        assert (version / model_card.FOLDER / name).read_bytes() == file.content
