"""The client against servers on loopback that speak gRPC and REST, and fail in the ways servers do.

The servers here stand in for the network's other end alone: they answer with the C++ runtime, and how a
model behaves in that is tested elsewhere.
"""

import concurrent.futures
import http.server
import json
import pathlib
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

import tfdeq
from export import client, saved_model
from export.client import Client, ServerError
from tests.cases import contracting_language_model
from tfdeq.models import generate

ROOT = pathlib.Path(__file__).absolute().parent.parent


@pytest.fixture(scope="module")
def model():
    return contracting_language_model(256, 12)


@pytest.fixture(scope="module")
def answer(model, tmp_path_factory):
    path = saved_model.export(model, tmp_path_factory.mktemp("output"))
    loaded = tf.saved_model.load(str(path))

    def run(signature, inputs):
        outputs = loaded.signatures[signature](**inputs)
        return {name: value.numpy() for name, value in outputs.items()}

    return run


class Faults:
    """What the next calls meet before one is answered."""

    def __init__(self):
        self.queue, self.calls, self.delay = [], 0, 0.0

    def next(self):
        self.calls += 1
        time.sleep(self.delay)
        return self.queue.pop(0) if self.queue else None


@pytest.fixture
def grpc_server(answer):
    faults = Faults()

    class Servicer(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            fault = faults.next()
            if fault is not None:
                context.abort(fault, "not now")
            if request.model_spec.name != "model":
                context.abort(grpc.StatusCode.NOT_FOUND, "Servable not found")
            inputs = {name: tf.constant(tf.make_ndarray(v)) for name, v in request.inputs.items()}
            response = predict_pb2.PredictResponse()
            for name, value in answer(request.model_spec.signature_name, inputs).items():
                response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
            return response

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", faults
    server.stop(None)


@pytest.fixture
def rest_server(answer):
    faults = Faults()
    dtypes = {"log_probabilities": "DT_FLOAT", "residual": "DT_FLOAT"}
    dtypes.update(steps="DT_INT32", status="DT_INT32")
    outputs = {name: {"dtype": dtype} for name, dtype in dtypes.items()}
    metadata = {"metadata": {"signature_def": {"signature_def": {"serving_default": {}}}}}
    metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]["outputs"] = outputs

    class Handler(http.server.BaseHTTPRequestHandler):
        def reply(self, code, body):
            content = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            self.reply(200, metadata)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fault = faults.next()
            if fault is not None:
                return self.reply(fault, {"error": "not now"})
            if self.path != "/v1/models/model:predict":
                return self.reply(404, {"error": "Servable not found"})
            floating = ("tolerance", "temperature", "top_p")
            inputs = {
                name: tf.constant(value, tf.float32 if name in floating else tf.int32)
                for name, value in body["inputs"].items()
            }
            found = answer(body["signature_name"], inputs)
            return self.reply(200, {"outputs": {name: v.tolist() for name, v in found.items()}})

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}", faults
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(params=["grpc", "rest"])
def server(request):
    rest = request.param == "rest"
    return (*request.getfixturevalue(f"{request.param}_server"), rest)


TEXT = {"tokens": np.int32([[1, 2, 3], [4, 5, 6]]), "lengths": np.int32([3, 2])}


def test_answers_and_tolerances(server, model):
    address, _, rest = server
    asked = Client(address, "model", rest=rest)
    found = asked.predict(TEXT, tolerance=[1e-1, 1e-5], max_steps=[0, 50])
    assert (found["residual"] <= np.float32([1e-1, 1e-5])).all()
    assert found["steps"].dtype == np.int32
    assert found["log_probabilities"].dtype == np.float32
    assert found["steps"][1] > found["steps"][0]
    with tfdeq.SolveScope(tolerance=1e-5, max_steps=50):
        expected = tf.nn.log_softmax(model(TEXT["tokens"][1:, :2]))[0, -1]
    np.testing.assert_allclose(found["log_probabilities"][1], expected, atol=1e-5)
    asked.close()


def test_a_server_that_is_unavailable_at_first_is_asked_again(server):
    address, faults, rest = server
    faults.queue = [503, 429] if rest else [grpc.StatusCode.UNAVAILABLE] * 2
    found = Client(address, "model", rest=rest).predict(TEXT)
    assert faults.calls == 3
    assert (found["status"] == 0).all()


def test_attempts_and_the_deadline_end(server):
    address, faults, rest = server
    faults.queue = [503] * 9 if rest else [grpc.StatusCode.UNAVAILABLE] * 9
    with pytest.raises(ServerError, match="after 2 attempts"):
        Client(address, "model", rest=rest, attempts=2).predict(TEXT)
    assert faults.calls == 2
    faults.queue, faults.delay = [], 2.0
    started = time.monotonic()
    with pytest.raises(ServerError):
        Client(address, "model", rest=rest, timeout=0.5).predict(TEXT)
    assert time.monotonic() - started < 1.5


def test_a_refusal_is_not_asked_again(server):
    address, faults, rest = server
    with pytest.raises(ServerError, match="refused: .*Servable not found"):
        Client(address, "other", rest=rest).predict(TEXT)
    assert faults.calls == 1


def test_nobody_listens():
    for rest in (False, True):
        with pytest.raises(ServerError, match="No answer from the server"):
            Client("127.0.0.1:9", "model", rest=rest, timeout=1.0, attempts=2).predict(TEXT)


@pytest.mark.parametrize("settings", [{"timeout": 0.0}, {"attempts": 0}])
def test_bad_settings(settings):
    with pytest.raises(ValueError, match="timeout must be > 0"):
        Client("127.0.0.1:9", "model", **settings)


def test_the_program_prints_a_continuation(grpc_server, model, tmp_path):
    address, _ = grpc_server
    command = [sys.executable, "-m", "export.client", f"--address={address}", "--model_name=model"]
    finished = subprocess.run(
        [*command, "--text=import", "--max_new_tokens=4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert finished.returncode == 0, finished.stderr
    prompt = np.frombuffer(b"import", np.uint8).astype(np.int32)[None]
    expected = generate(model, prompt, max_new_tokens=4)
    text = bytes(expected.tokens[0, :4].numpy().astype(np.uint8)).decode(errors="replace")
    assert finished.stdout.strip() == f"import{text}".strip()
    assert "4 tokens, " in finished.stderr
    refused = subprocess.run(
        [*command, "--text=far longer than twelve bytes"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert refused.returncode == 1
    assert "more tokens than the model reads" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_words():
    vocabulary = ["the", "cat", "<unk>"]
    assert client.encode_text("the dog", vocabulary).tolist() == [0, 2]
    assert client.decode_text(np.array([1, 0]), vocabulary) == " cat the"
    with pytest.raises(ValueError, match="lacks: dog"):
        client.encode_text("the dog", vocabulary[:2])
    with pytest.raises(ValueError, match="at least one character"):
        client.encode_text(" ", None)
