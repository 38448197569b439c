"""Models of pictures: `serve_encoded` in both runtimes, with broken files among good ones."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tfdeq.runs import kind as recorded
from tfdeq.serving.kinds import runs
from tfdeq.serving.kinds.picture_kind import PictureKind
from tfdeq.serving.server import isolated
from tfdeq.serving.server.isolated import Request
from tfdeq.serving.verification.verify import verify_kind
from tfdeq.serving.versions.saved_model import export_kind

PICTURES = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), np.uint8)


def make_model():
    keras.utils.set_random_seed(0)
    image = keras.Input((5, 4, 3), name="image")
    x = keras.layers.ZeroPadding2D(1)(image)
    cell = tfdeq.cells.MonotoneConvolution(3, monotonicity=1.0)
    z = tfdeq.DEQLayer(cell, tfdeq.PeacemanRachford(40, 1e-4))(x)
    return keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(z)))


@pytest.fixture(scope="module")
def kind():
    return PictureKind(make_model(), examples={"image": np.float32(PICTURES / 255)})


def inputs_of(files):
    encoded = np.empty([len(files)], object)
    encoded[:] = files
    rows = len(files)
    return {
        "encoded": encoded,
        "tolerance": np.zeros([rows], np.float32),
        "max_steps": np.zeros([rows], np.int32),
    }


def call(signature, inputs):
    outputs = signature.function(**{name: tf.constant(value) for name, value in inputs.items()})
    return {name: value.numpy() for name, value in outputs.items()}


@pytest.mark.slow
def test_answers_are_those_of_the_pictures(kind):
    signatures = kind.signatures(only=["serve_encoded"])
    files = [tf.io.encode_png(each).numpy() for each in PICTURES[:3]]
    files.insert(1, b"no picture")
    found = call(signatures["serve_encoded"], inputs_of(files))
    given = inputs_of(files[:3])
    given["image"] = np.float32(PICTURES[:3] / 255)
    del given["encoded"]
    expected = call(signatures["serving_default"], given)
    assert found.keys() == expected.keys() >= {"output_0", "certified_radius"}
    for name, value in expected.items():
        np.testing.assert_allclose(np.delete(found[name], 1, axis=0), value, rtol=1e-5, atol=1e-6)
    assert found["status"].tolist() == [0, -1, 0, 0]
    assert found["steps"][1] == 0
    assert found["residual"][1] == np.finfo(np.float32).max
    assert not found["output_0"][1].any()
    assert found["certified_radius"][1] == 0
    empty = call(signatures["serve_encoded"], inputs_of([]))
    assert empty["output_0"].shape == (0, 3)


def test_a_run_of_pictures_is_of_this_kind(tmp_path):
    model, x = make_model(), np.float32(PICTURES / 255)
    kept = recorded.keep(x, np.arange(6) % 3)
    measures = {"accuracy": "sparse_categorical_accuracy"}
    entry = recorded.pictures(recorded.examples(measures, model, kept))
    model.save(tmp_path / "model.keras")
    (tmp_path / "metrics.json").write_text(json.dumps({"kind": entry}))
    (tmp_path / "config.json").write_text("{}")
    recorded.write(tmp_path, kept)
    found = runs.read(tmp_path).kind
    assert isinstance(found, PictureKind)
    assert "picture" in found.card(None)["status"]["-1"]
    files = found.warm_up()["encoded"]
    np.testing.assert_array_equal(tf.io.decode_png(files[4]), PICTURES[4])
    assert runs.read(tmp_path, data=False).kind.warm_up() is None


@pytest.mark.slow
def test_both_runtimes(kind, tmp_path):
    path = export_kind(kind, tmp_path)
    checks, _ = verify_kind(kind, path)
    assert [check.text for check in checks if not check.passed] == []
    png = tf.io.encode_png(PICTURES[0]).numpy()
    # Zeros at the end of the bytes are bytes too.
    requests = [Request("", "serve_encoded", inputs_of([png + b"\0\0", b"\0", png, b""]))]
    for runtime in isolated.RUNTIMES:
        (found,) = isolated.answer(path, requests, runtime).outputs
        assert found["status"].tolist() == [0, -1, 0, -1]
