"""Tests of tfdeq.runs.kind."""

import keras
import numpy as np
import pytest

from tfdeq.runs import kind


@pytest.mark.parametrize("targets", [np.arange(100), {"a": np.arange(100), "b": np.ones([100, 2])}])
def test_examples_are_read_as_they_were_written(targets, tmp_path):
    kept = kind.keep({"x": np.ones([100, 3]), "y": np.zeros([100])}, targets)
    assert [len(leaf) for leaf in kept.inputs] == [kind.KEPT, kind.KEPT]
    kind.write(tmp_path, kept)
    again = kind.read(tmp_path)
    keras.tree.map_structure(np.testing.assert_array_equal, again, kept)


def test_a_run_without_examples_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="Train to the end"):
        kind.read(tmp_path)


def test_the_entry_says_measures_and_inputs():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    kept = kind.keep(np.ones([4, 3], "float32"), np.array([0, 1, 0, 1]))
    found = kind.examples({"accuracy": "sparse_categorical_accuracy"}, model, kept, ["x"])
    assert (found["name"], found["inputs"]) == (kind.EXAMPLES, ["x"])
    assert list(found["measures"]) == ["accuracy"]


def test_leaves_become_what_the_model_takes():
    x, y = keras.Input((2,), name="x"), keras.Input((3,), name="y")
    named = keras.Model({"x": x, "y": y}, keras.layers.Concatenate()([x, y]))
    assert kind.packed(named, [1, 2]) == {"x": 1, "y": 2}
    own = keras.Model()  # a subclassed model, which does not declare its inputs
    assert kind.packed(own, [1]) == 1
    assert kind.packed(own, [1, 2]) == [1, 2]
