"""The flags for files of small devices."""

import keras
import numpy as np
import pytest
from absl import flags

import tfdeq
from tests.support.cases import DenseCell
from tfdeq.serving.edge import edge_flags
from tfdeq.serving.kinds.keras_kind import KerasKind


@pytest.fixture
def values():
    found = flags.FlagValues()
    edge_flags.define(found)
    flags.DEFINE_integer("max_steps_limit", None, "", flag_values=found)
    return found


def test_flags_say_what_is_converted(values):
    x = keras.Input((4,), name="x")
    kind = KerasKind(keras.Model(x, tfdeq.DEQLayer(DenseCell(4), "fixed_point_iteration")(x)))
    values(["program"])
    assert edge_flags.converted(kind, values) == {}
    values(["program", "--format=litert", "--edge_shapes=x=4", "--edge_signatures=encode"])
    ((name, found),) = edge_flags.converted(kind, values).items()
    assert name == "model.tflite"
    assert list(found.described["signatures"]) == ["encode"]
    assert found.described["signatures"]["encode"]["x"] == [1, 4]
    assert np.frombuffer(found.content[4:8], np.uint8).tobytes() == b"TFL3"


def test_each_format_is_written_once(values, monkeypatch):
    given = []

    def convert_kind(kind, **options):
        given.append((options["format"], options["precision"], options["signatures"]))
        return options["format"]

    monkeypatch.setattr(edge_flags, "convert_kind", convert_kind)
    values(["program", "--format=savedmodel,onnx,litert", "--litert_precision=float16"])
    found = edge_flags.converted(None, values)
    assert found == {"model_float16.tflite": "litert", "model.onnx": "onnx"}
    names = ["serving_default"]
    assert given == [("litert", "float16", names), ("onnx", "float32", names)]


def test_former_names_of_flags(values):
    values(
        ["program", "--litert_shapes=x=4", "--litert_signatures=encode", "--litert_batch_size=2"]
    )
    assert (values.edge_shapes, values.edge_signatures, values.edge_batch_size) == (
        ["x=4"],
        ["encode"],
        2,
    )


@pytest.mark.parametrize("given", ["tokens", "tokens=", "tokens=0", "tokens=4x", "=4"])
def test_sizes_that_are_none(values, given):
    with pytest.raises(flags.IllegalFlagValueError, match="must be like tokens=64"):
        values(["program", f"--edge_shapes={given}"])


def test_an_unknown_format_is_refused(values):
    with pytest.raises(flags.IllegalFlagValueError, match="must be of savedmodel, litert, onnx"):
        values(["program", "--format=savedmodel,tflite"])
