"""Properties of gRPC: limits of either side, compressed answers, large requests."""

import concurrent.futures

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tests.support.server_cases import metadata
from tfdeq.serving.client.model_client import Client, ServerError

Y = np.arange(60_000, dtype=np.float32)


class Servicer(prediction_service_pb2_grpc.PredictionServiceServicer):
    def GetModelMetadata(self, request, context):
        found = get_model_metadata_pb2.GetModelMetadataResponse()
        found.metadata["signature_def"].Pack(metadata())
        return found

    def Predict(self, request, context):
        found = predict_pb2.PredictResponse()
        batch = len(tf.make_ndarray(request.inputs["x"]))
        counts = np.zeros([batch], np.int32)
        # Not packed, as TensorFlow Serving writes numbers.
        found.outputs["y"].dtype = tf.float32.as_datatype_enum
        found.outputs["y"].tensor_shape.CopyFrom(tf.TensorShape([batch]).as_proto())
        found.outputs["y"].float_val.extend(np.resize(Y, [batch]).tolist())
        for name, value in {"residual": counts.astype(np.float32), "steps": counts}.items():
            found.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        found.outputs["status"].CopyFrom(tf.make_tensor_proto(counts))
        return found


@pytest.fixture
def serve():
    """Starts a server with options, and returns a client's answer for a batch of 60,000."""
    servers = []

    def start(max_answer_bytes, **options):
        servers.append(grpc.server(concurrent.futures.ThreadPoolExecutor(2), **options))
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Servicer(), servers[-1])
        port = servers[-1].add_insecure_port("127.0.0.1:0")
        servers[-1].start()
        client = Client(f"127.0.0.1:{port}", "model", max_answer_bytes=max_answer_bytes)
        try:
            return client.predict({"x": np.zeros([len(Y), 2])})
        finally:
            client.close()

    yield start
    for server in servers:
        server.stop(None)


def test_an_answer_within_the_limit(serve):
    np.testing.assert_array_equal(serve(2**21)["y"], Y)


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
def test_an_answer_beyond_the_limit(serve, compression):
    """Including one whose compressed bytes are below it."""
    with pytest.raises(ServerError, match="larger than max_answer_bytes = 500,000"):
        serve(500_000, compression=compression)


def test_a_request_beyond_the_servers_limit(serve):
    with pytest.raises(ServerError, match="refused: RESOURCE_EXHAUSTED.*Ask with a smaller batch"):
        serve(2**21, options=[("grpc.max_receive_message_length", 300_000)])
