"""Properties of REST: addresses, proxies, text, and answers with a single output."""

import base64
import json

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import json_format

from tests.support.server_cases import ANSWER, json_page, metadata, peers
from tfdeq.serving.client.model_client import Client

__all__ = ["peers"]

X = {"x": np.zeros([2, 2], np.float32)}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def recording(described, outputs):
    """Returns a script and the list of its requests: first line, headers, body."""
    seen = []

    def script(peer, connection):
        stream = connection.makefile("rb")
        while line := stream.readline():
            headers = {}
            while (header := stream.readline()) not in (b"\r\n", b""):
                name, _, value = header.decode().partition(":")
                headers[name.lower()] = value.strip()
            body = stream.read(int(headers.get("content-length", 0)))
            seen.append((line.decode().split()[1], headers, body and json.loads(body)))
            if line.startswith(b"GET"):
                connection.sendall(json_page(described))
            else:
                connection.sendall(json_page({"outputs": outputs}))

    return script, seen


def as_json(described):
    found = json_format.MessageToDict(described, preserving_proto_field_name=True)
    return {"metadata": {"signature_def": found}}


def test_names_and_versions_in_the_address(peers):
    script, seen = recording(as_json(metadata()), ANSWER)
    address = f"{peers(script).address}/behind/"
    client = Client(address, "a model/ü", version=3, rest=True)
    client.predict(X)
    client.close()
    path = "/behind/v1/models/a%20model%2F%C3%BC/versions/3"
    assert [line for line, _, _ in seen] == [f"{path}/metadata", f"{path}:predict"]


def test_the_environments_proxy(peers, monkeypatch):
    script, seen = recording(as_json(metadata()), ANSWER)
    proxy = peers(script)
    monkeypatch.setenv("http_proxy", f"http://me:p%40ss@{proxy.address}")
    client = Client("far.invalid:8501", "model", rest=True)
    client.predict(X)
    client.close()
    assert seen[1][0] == "http://far.invalid:8501/v1/models/model:predict"
    assert seen[1][1]["host"] == "far.invalid:8501"
    sent = seen[1][1]["proxy-authorization"].removeprefix("Basic ")
    assert base64.b64decode(sent) == b"me:p@ss"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    direct, seen = recording(as_json(metadata()), ANSWER)
    client = Client(peers(direct).address, "model", rest=True)
    client.predict(X)
    client.close()
    assert seen[1][0] == "/v1/models/model:predict"


def test_text_and_numbers_that_json_does_not_know(peers):
    given = {
        "x": tf.TensorSpec([None, 2]),
        "text": tf.TensorSpec([None], tf.string),
        "half": tf.TensorSpec([None], tf.bfloat16),
    }
    script, seen = recording(as_json(metadata(**given)), ANSWER)
    client = Client(peers(script).address, "model", rest=True)
    x = np.float32([[np.nan, np.inf], [0.1, 1.0]])
    client.predict({"x": x, "text": ["ü", b"\xff\0"], "half": [0.5, 2]})
    client.close()
    sent = seen[1][2]["inputs"]
    assert [base64.b64decode(item["b64"]) for item in sent["text"]] == ["ü".encode(), b"\xff\0"]
    assert sent["half"] == [0.5, 2.0]
    np.testing.assert_array_equal(np.float32(sent["x"]), x)


def test_one_output_comes_without_its_name(peers):
    described = metadata()
    definition = described.signature_def["serving_default"]
    for name in ("residual", "steps", "status"):
        del definition.outputs[name]
    definition.outputs["y"].dtype = tf.string.as_datatype_enum
    answer = ["a", {"b64": base64.b64encode(b"\xff").decode()}]
    script, _ = recording(as_json(described), answer)
    client = Client(peers(script).address, "model", rest=True)
    assert client.predict(X)["y"].tolist() == [b"a", b"\xff"]
    client.close()
