"""What a classifier takes for what."""

import json

import keras
import numpy as np

import tfdeq
from tfdeq.training.images import drawings

CONFIG = {"jit_compile": False}


def _model(solves):
    image = keras.Input((2, 2, 1))
    flat = keras.layers.Flatten()(image)
    if solves:
        flat = tfdeq.DEQLayer(tfdeq.cells.DenseCell(4, contraction=0.5), "anderson")(flat)
    return keras.Model(image, keras.layers.Dense(3)(flat))


def test_answers_are_the_models_for_each_picture_once():
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (70, 2, 2, 1), np.uint8)
    split = (pictures, random.integers(0, 3, 70))
    for solves in (True, False):
        model = _model(solves)
        found = drawings.answers(model, split, lambda x: keras.ops.cast(x, "float32"), CONFIG)
        expected = np.argmax(model(pictures.astype("float32")), axis=1)
        np.testing.assert_array_equal(found.answer, expected)
        assert np.isfinite(found.residual).all() == solves


def test_the_table_counts_classes_by_answer():
    table = drawings.confusion(np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 2, 2]), 3)
    assert table.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 2]]


def test_pictures_are_drawn_whatever_is_right(tmp_path):
    random = np.random.default_rng(0)
    for name, channels, right in (("all", 1, 1.0), ("none", 3, 0.0), ("some", 1, 0.7)):
        folder = tmp_path / name
        folder.mkdir()
        targets = random.integers(0, 3, 30)
        answer = np.where(random.random(30) < right, targets, (targets + 1) % 3)
        split = (random.integers(0, 256, (30, 4, 4, channels), np.uint8), targets)
        found = drawings.Answers(answer, np.full(30, 1e-3))
        drawings.draw_all(str(folder), split, found, ["a", "b", "c"])
        record = json.loads((folder / "confusion.json").read_text())
        assert record["classes"] == ["a", "b", "c"]
        assert np.trace(record["confusion"]) == (answer == targets).sum()
        for picture in ("confusion.png", "pictures.png"):
            assert (folder / picture).stat().st_size > 5000
