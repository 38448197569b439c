"""The client with servers on the loopback device that speak gRPC and REST, and fail like real servers.

The servers here only replace the other end of the network: they answer with the C++ runtime, in which
models are tested elsewhere.
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
from google.protobuf import json_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

import tfdeq
from tests.support.cases import fast
from tests.support.verified_run import language_model
from tfdeq.models import generate
from tfdeq.serving.client.model_client import Client, ServerError
from tfdeq.serving.versions import warm_up

FUNCTIONS_ARE_KEPT = True  # see tests/conftest.py
GENERATING = ("generate", "generate_first", "generate_next")
ROOT = pathlib.Path(__file__).absolute().parents[3]


@pytest.fixture(scope="module")
def model():
    return language_model()


@pytest.fixture(scope="module")
def path(verified_run):
    return verified_run / "export" / "1"


@pytest.fixture(scope="module")
def described(path):
    """Returns the signatures as described by the server's metadata."""
    found = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    signatures = found.meta_graphs[0].signature_def
    described = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in signatures.items():
        described.signature_def[name].CopyFrom(signature)
    return described


@pytest.fixture(scope="module")
def answer(path, model):
    loaded = tf.saved_model.load(str(path))

    def run(signature, inputs):
        outputs = loaded.signatures[signature](**inputs)
        return {name: value.numpy() for name, value in outputs.items()}

    # Like a server's warm-up, because a first call takes seconds, for which no client in these
    # tests waits. The model is made before, because that sets seeds.
    for signature, inputs in warm_up.read(path):
        if signature in ("serving_default", *GENERATING) and len(inputs["tokens"]) == 1:
            run(signature, {name: tf.constant(value) for name, value in inputs.items()})
    return run


class Faults:
    """The faults that the next calls meet before one is answered."""

    def __init__(self):
        self.queue, self.calls, self.metadata_calls, self.delay = [], 0, 0, 0.0

    def next(self):
        self.calls += 1
        time.sleep(self.delay)
        return self.queue.pop(0) if self.queue else None


@pytest.fixture
def grpc_server(answer, described):
    faults = Faults()

    class Servicer(prediction_service_pb2_grpc.PredictionServiceServicer):
        def GetModelMetadata(self, request, context):
            faults.metadata_calls += 1
            if request.model_spec.name != "model":
                context.abort(grpc.StatusCode.NOT_FOUND, "Servable not found")
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.metadata["signature_def"].Pack(described)
            return response

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


def _is_floating(name):
    return name in ("tolerance", "temperature", "top_p") or name.startswith("state_")


@pytest.fixture
def rest_server(answer, described):
    faults = Faults()
    found = json_format.MessageToDict(described, preserving_proto_field_name=True)
    metadata = {"metadata": {"signature_def": found}}

    class Handler(http.server.BaseHTTPRequestHandler):
        def reply(self, code, body):
            content = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            faults.metadata_calls += 1
            if self.path != "/v1/models/model/metadata":
                return self.reply(404, {"error": "Servable not found"})
            return self.reply(200, metadata)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fault = faults.next()
            if fault is not None:
                return self.reply(fault, {"error": "not now"})
            if self.path != "/v1/models/model:predict":
                return self.reply(404, {"error": "Servable not found"})
            inputs = {
                name: tf.constant(value, tf.float32 if _is_floating(name) else tf.int32)
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


# For behaviour that is the same for both.
by_grpc_first, by_rest_first = (
    pytest.mark.parametrize("server", fast([one], ["grpc", "rest"]), indirect=True)
    for one in ("grpc", "rest")
)

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


@by_rest_first
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
    assert (faults.metadata_calls, faults.calls) == (1, 0)
    asked = Client(address, "model", rest=rest)
    faults.queue = [400] if rest else [grpc.StatusCode.INVALID_ARGUMENT]
    with pytest.raises(ServerError, match="refused: .*not now.*Correct the request"):
        asked.predict(TEXT)
    assert faults.calls == 1


@by_grpc_first
def test_metadata_are_read_once_and_again_after_a_refusal(server):
    address, faults, rest = server
    asked = Client(address, "model", rest=rest)
    asked.predict(TEXT)
    asked.predict(TEXT)
    assert faults.metadata_calls == 1
    faults.queue = [400] if rest else [grpc.StatusCode.INVALID_ARGUMENT]
    with pytest.raises(ServerError, match="not now"):
        asked.predict(TEXT)
    assert (faults.metadata_calls, faults.calls) == (2, 3)


@by_rest_first
def test_numbers_are_sent_in_the_dtypes_of_the_signature(server):
    """Lists of Python numbers are int64 and float64, which servers refuse."""
    address, _, rest = server
    asked = Client(address, "model", rest=rest)
    expected = asked.predict(TEXT, tolerance=1e-3)
    given = {"tokens": [[1.0, 2, 3], [4, 5, 6]], "lengths": np.int64([3, 2])}
    found = asked.predict(given, tolerance=np.float64(1e-3), max_steps=[0, 0])
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    with pytest.raises(ValueError, match="'tokens' is int32.*received 3000000000"):
        asked.predict({**TEXT, "tokens": [[1, 2, 3], [4, 5, 3_000_000_000]]})


WRONG = {
    "nothing": ({}, ValueError, "at least one array"),
    "no dict": ([1, 2], TypeError, "received list"),
    "a scalar": ({**TEXT, "lengths": 3}, ValueError, "'lengths' must be.*a scalar"),
    "an empty batch": ({"tokens": np.zeros([0, 3]), "lengths": []}, ValueError, "empty batch"),
    "batches that differ": ({**TEXT, "lengths": [3]}, ValueError, "tokens: 2, lengths: 1"),
    "ragged": ({**TEXT, "tokens": [[1, 2], [3]]}, ValueError, "'tokens' must be an array"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_refused_before_the_server_is_asked(case):
    given, kind, match = WRONG[case]
    for rest in (False, True):
        asked = Client("127.0.0.1:9", "model", rest=rest)
        with pytest.raises(kind, match=match):
            asked.predict(given)


def test_a_closed_client():
    for rest in (False, True):
        asked = Client("127.0.0.1:9", "model", rest=rest)
        asked.close()
        with pytest.raises(ValueError, match="closed"):
            asked.predict(TEXT)


@by_grpc_first
def test_threads_share_a_client(server):
    address, _, rest = server
    asked = Client(address, "model", rest=rest)
    expected = asked.predict(TEXT)["steps"]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: asked.predict(TEXT)["steps"], range(20)))
    for found in answers:
        np.testing.assert_array_equal(found, expected)
    asked.close()


def test_nobody_listens():
    for rest in (False, True):
        with pytest.raises(ServerError, match="No answer from the server"):
            Client("127.0.0.1:9", "model", rest=rest, timeout=1.0, attempts=2).predict(TEXT)


@pytest.mark.parametrize(
    "settings",
    [
        {"timeout": 0.0},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"attempts": 0},
        {"max_answer_bytes": 0},
        {"max_answer_bytes": 2**31},
    ],
)
def test_bad_settings(settings):
    with pytest.raises(ValueError, match="must be"):
        Client("127.0.0.1:9", "model", **settings)


@pytest.mark.parametrize("address", ["", ":8501", "host:port", "host:99999"])
def test_bad_addresses(address):
    with pytest.raises(ValueError, match="address must be host:port"):
        Client(address, "model", rest=True)


SAMPLED = {"max_new_tokens": 7, "temperature": 1.5, "top_p": 0.9, "seed": 4}


@by_grpc_first
@pytest.mark.parametrize("settings", [{}, SAMPLED])
def test_a_stream_is_what_generate_says(server, answer, settings):
    """Exactly, in segments of any size."""
    address, faults, rest = server
    asked = Client(address, "model", rest=rest)
    prompt = np.frombuffer(b"impo", np.uint8).astype(np.int32)
    given = {"max_new_tokens": 0, "temperature": 0.0, "top_k": 0, "top_p": 0.0, "seed": 0}
    given = {**given, "stop_token": -1, **settings}
    inputs = {name: np.array([value]) for name, value in given.items()}
    whole = asked.predict({"tokens": prompt[None], "lengths": [4], **inputs}, "generate")
    tokens = whole["tokens"][0, : whole["lengths"][0]]
    expected = bytes(tokens.astype(np.uint8)).decode(errors="replace")
    faults.calls = 0
    parts = list(asked.segments("impo", first_tokens=1, segment_tokens=3, **settings))
    assert [len(part.tokens) for part in parts] == {8: [1, 3, 3, 1], 7: [1, 3, 3]}[len(tokens)]
    assert faults.calls == len(parts)
    assert [part.finish for part in parts[:-1]] == [None] * (len(parts) - 1)
    assert "".join(part.text for part in parts) == expected
    assert "".join(asked.stream("impo", segment_tokens=2, **settings)) == expected
    found = asked.generate("impo", **settings)
    np.testing.assert_array_equal(found.tokens, tokens)
    assert found.text == expected
    for name in ("finish", "steps", "prompt_steps", "status", "residual"):
        assert getattr(found, name) == whole[name][0]
    np.testing.assert_array_equal(asked.generate(prompt.tolist(), **settings).tokens, tokens)


def test_texts_and_settings_that_a_stream_refuses(grpc_server):
    address, _ = grpc_server
    asked = Client(address, "model")
    with pytest.raises(ValueError, match="The server rejected the text: it has more tokens"):
        list(asked.stream("far longer than twelve bytes"))
    with pytest.raises(
        TypeError, match="Unknown settings: tempreature. Known ones: max_new_tokens"
    ):
        asked.stream("a", tempreature=1.0)
    with pytest.raises(ValueError, match="must be >= 1; received 1, 0"):
        asked.stream("a", segment_tokens=0)
    for prompt in ([], [[1]], [1.5], None):
        with pytest.raises(ValueError, match="prompt must be a text, or token ids"):
            asked.generate(prompt)


@pytest.mark.slow
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
    assert "more tokens than the model can read" in refused.stderr
    assert "Traceback" not in refused.stderr
