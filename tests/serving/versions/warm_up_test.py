"""Warm-up records: read with the server's own protos, and answered by the C++ runtime."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from tfdeq.serving.signatures.signature import Signature, trace
from tfdeq.serving.versions import warm_up

SPECS = {
    "x": tf.TensorSpec([None, 2], tf.float32, "x"),
    "tolerance": tf.TensorSpec([None], tf.float32, "tolerance"),
}


def signature(function, specs):
    return Signature(trace(function, specs), {}, {})


@pytest.fixture(scope="module")
def signatures():
    state = tf.TensorSpec([None, 2], tf.float32, "state")
    return {
        "serving_default": signature(lambda x, tolerance: {"y": x, "t": tolerance}, SPECS),
        "encode": signature(lambda x, tolerance: {"state": 2.0 * x + tolerance[:, None]}, SPECS),
        "step": signature(
            lambda x, tolerance, state: {"y": x + state, "t": tolerance}, {**SPECS, "state": state}
        ),
    }


EXAMPLES = {"x": np.float32([[1, 2], [3, 4], [5, 6]])}


def test_the_servers_protos_read_them(signatures, tmp_path):
    warm_up.write(tmp_path, "name", warm_up.requests(signatures, EXAMPLES, [1, 4]))
    path = tmp_path / "assets.extra" / "tf_serving_warmup_requests"
    records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    assert len(records) == 6
    seen = []
    for record in records:
        log = prediction_log_pb2.PredictionLog.FromString(record)
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        assert request.model_spec.name == "name"
        x = tf.make_ndarray(request.inputs["x"])
        np.testing.assert_array_equal(x, EXAMPLES["x"][np.arange(len(x)) % 3])
        assert not tf.make_ndarray(request.inputs["tolerance"]).any()
        seen.append((request.model_spec.signature_name, len(x)))
        if request.model_spec.signature_name == "step":  # from what encode returns
            np.testing.assert_array_equal(tf.make_ndarray(request.inputs["state"]), 2 * x)
    assert seen == [(name, batch) for batch in (1, 4) for name in signatures]


def test_what_is_written_is_read(signatures, tmp_path):
    written = list(warm_up.requests(signatures, EXAMPLES, [2]))
    warm_up.write(tmp_path, "name", written)
    for (name, inputs), (other, expected) in zip(warm_up.read(tmp_path), written, strict=True):
        assert name == other
        assert inputs.keys() == expected.keys()
        for key in inputs:
            np.testing.assert_array_equal(inputs[key], expected[key])
            assert inputs[key].dtype == expected[key].dtype


def test_a_version_without_records_and_a_broken_file(tmp_path):
    assert warm_up.read(tmp_path) == []
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / "assets.extra" / warm_up.NAME).write_bytes(b"no records at all")
    with pytest.raises(ValueError, match="cannot be read as warm-up records"):
        warm_up.read(tmp_path)


@pytest.mark.parametrize(
    ("examples", "batch_sizes", "error"),
    [
        ({}, [1], "at least 1; received {}"),
        ({"x": np.zeros([0, 2])}, [1], "at least 1"),
        ({"x": np.zeros([3, 2]), "tolerance": np.zeros(2)}, [1], "same number of rows"),
        ({"tolerance": np.zeros(2)}, [1], "takes 'x'"),
        (EXAMPLES, range(1, 400), "more than the 1000 warm-up records"),
    ],
)
def test_examples_that_do_not_fit(signatures, examples, batch_sizes, error):
    with pytest.raises(ValueError, match=error):
        list(warm_up.requests(signatures, examples, batch_sizes))
