"""For any fault of a server, a call ends by its deadline, with a ServerError that says what to do."""

import concurrent.futures
import re
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from tests.support import server_cases
from tests.support.server_cases import (
    ANSWER,
    drip,
    grpc_answer,
    h2_data,
    h2_header,
    h2_message,
    hang_up,
    json_page,
    metadata,
    page,
    peers,
    proto_answer,
    rest,
    rpc,
    silent,
)
from tfdeq.serving.client.model_client import Client, ServerError

__all__ = ["peers"]

SECONDS = 0.5
LATE = 0.2  # seconds by which a call may exceed its deadline
LIMIT = 20_000
X = {"x": np.zeros([2, 2], np.float32)}
TIME = "the time ran out|DEADLINE_EXCEEDED"
LONGER = "Give a longer timeout"
PORT = "name (its|the) (gRPC|REST) port"
SMALLER = "Ask with a smaller batch"
HTML = b"<html><h1>Welcome</h1></html>"


def ended(address, *, is_rest, seconds=SECONDS, **options):
    """Returns the error of a call, and its duration in seconds."""
    client = Client(
        address, "model", rest=is_rest, timeout=seconds, max_answer_bytes=LIMIT, **options
    )
    started = time.monotonic()
    with pytest.raises(ServerError) as raised:
        client.predict(X)
    taken = time.monotonic() - started
    client.close()
    return str(raised.value), taken


def endless(peer, connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while not peer.ended.is_set():
        connection.sendall(b"1" * 4096)


def slow_body(peer, connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")
    drip(peer, connection, b"1" * 99)


def slow_chunks(peer, connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    drip(peer, connection, b"1\r\n1\r\n" * 99)


def cut_off(peer, connection):
    connection.sendall(page(200, b"{", length=99))
    hang_up(peer, connection)


def slow_rpc_body(peer, connection, stream):
    connection.sendall(h2_header(stream))
    content = h2_message(stream, proto_answer())
    drip(peer, connection, content)


def damaged(**changes):
    """An answer in which one tensor is invalid."""
    found = predict_pb2.PredictResponse.FromString(proto_answer())
    for name, value in changes.items():
        setattr(found.outputs["y"], name, value)
    return found


def of_shape(*sizes):
    found = damaged()
    found.outputs["y"].tensor_shape.CopyFrom(tf.TensorShape(sizes).as_proto())
    return found.SerializeToString()


# Name -> the script's answer, the error's text, its advice, and whether retries may help.
REST_FAULTS = {
    "silent": (lambda peer, _: peer.ended.wait(), TIME, LONGER, True),
    "slow header": (
        lambda peer, at: drip(peer, at, b"HTTP/1.1 200 OK\r\nX: 1\r\n" * 9),
        TIME,
        LONGER,
        True,
    ),
    "slow body": (slow_body, TIME, LONGER, True),
    "slow chunks": (slow_chunks, TIME, LONGER, True),
    "endless body": (endless, "larger than max_answer_bytes = 20,000", SMALLER, False),
    "huge body": (page(200, b"{", length=10**13), "larger than max_answer_bytes", SMALLER, False),
    "cut off": (cut_off, "the connection failed", "whether the server runs", True),
    "closed": (hang_up, "the connection failed", "whether the server runs", True),
    "error page": (page(200, HTML), "no JSON.*Welcome", PORT, False),
    "error page, 404": (
        page(404, HTML),
        "refused: HTTP 404.*Welcome",
        "Correct the model's",
        False,
    ),
    "error page, 500": (page(500, b""), "refused: HTTP 500: without", "The server's log", False),
    "error page, 503": (page(503), "HTTP 503: <html>Bad", "whether the server runs", True),
    "queue full": (page(429, b'{"error": "full"}'), "HTTP 429: full", "whether the server", True),
    "elsewhere": (
        b"HTTP/1.1 302 x\r\nLocation: http://there\r\nContent-Length: 0\r\n\r\n",
        "HTTP 302",
        "name that address",
        False,
    ),
    "no HTTP": (b"\x00\x00\x12\x04" * 9 + b"\n", "no HTTP", PORT, False),
    "a list": (json_page([1]), "cannot be read", PORT, False),
    "no outputs": (json_page({"predictions": [1]}), "cannot be read", PORT, False),
    "outputs of another type": (json_page({"outputs": 1}), "cannot be read", PORT, False),
    "deep": (page(200, b"[" * 9000), "cannot be read|no JSON", PORT, False),
    "digits": (page(200, b"1" * 9000), "cannot be read|no JSON", PORT, False),
}
# Faults that only an answer to `predict` can have.
REST_ANSWERS = {
    "text for numbers": {**ANSWER, "y": ["a", "b"]},
    "null": {**ANSWER, "y": [None, 1.0]},
    "ragged": {**ANSWER, "y": [[1.0], [1.0, 2.0]]},
    "halves for integers": {**ANSWER, "steps": [1.5, 2.0]},
    "beyond int32": {**ANSWER, "steps": [3_000_000_000, 2]},
    "beyond float32": {**ANSWER, "y": [1e39, 1.0]},
    "one row of two": {name: value[:1] for name, value in ANSWER.items()},
    "another rank": {**ANSWER, "y": [[1.0], [2.0]]},
    "one is missing": {"y": [1.0, 2.0]},
}
RPC_FAULTS = {
    "silent": (lambda *_: None, TIME, LONGER, True),
    "slow header": (
        lambda peer, at, stream: drip(peer, at, h2_header(stream)),
        TIME,
        LONGER,
        True,
    ),
    "slow body": (slow_rpc_body, TIME, LONGER, True),
    "huge body": (
        lambda peer, at, stream: grpc_answer(stream, bytes(LIMIT + 1)),
        "larger than max_answer_bytes = 20,000",
        SMALLER,
        False,
    ),
    "closed": (hang_up, "UNAVAILABLE", "whether the server runs", True),
    "error page": (
        lambda peer, at, stream: h2_header(stream, b"text/html") + h2_data(stream, HTML),
        "refused: UNKNOWN",
        PORT,
        False,
    ),
    "no proto": (
        lambda peer, at, stream: grpc_answer(stream, b"\xff" * 9),
        "refused: INTERNAL",
        "The server's log",
        False,
    ),
    "empty": (
        lambda peer, at, stream: grpc_answer(stream, b""),
        "cannot be read|does not match its signature",
        "check which server|See which server",
        False,
    ),
}
RPC_ANSWERS = {
    "no dtype": damaged(dtype=0).SerializeToString(),
    "another dtype": damaged(dtype=9).SerializeToString(),
    "a shape that its content has not": of_shape(3),
    "a shape beyond the memory": of_shape(2**20, 2**20),
    "one row of two": proto_answer({name: value[:1] for name, value in ANSWER.items()}),
    "one is missing": proto_answer({"y": [1.0, 2.0]}),
}


def check(address, peer, is_rest, says, advice, again):
    text, taken = ended(address, is_rest=is_rest)
    assert taken < SECONDS + LATE
    assert re.search(says, text), text
    assert re.search(advice, text), text
    if again:
        assert taken > 0.8 * SECONDS
    elif peer is not None:
        # At once, after the metadata and the request.
        assert taken < 0.5 * SECONDS
        assert peer.requests <= 2


@pytest.mark.parametrize("described", [None, metadata()], ids=["at once", "later"])
@pytest.mark.parametrize("fault", REST_FAULTS)
def test_rest(peers, fault, described):
    answer, *expected = REST_FAULTS[fault]
    peer = peers(rest(answer, described))
    check(peer.address, peer, True, *expected)


@pytest.mark.parametrize("described", [None, metadata()], ids=["at once", "later"])
@pytest.mark.parametrize("fault", RPC_FAULTS)
def test_grpc(peers, fault, described):
    answer, *expected = RPC_FAULTS[fault]
    peer = peers(rpc(answer, described))
    check(peer.address, peer, False, *expected)


@pytest.mark.parametrize("fault", REST_ANSWERS)
def test_rest_answers_of_another_type(peers, fault):
    peer = peers(rest(json_page({"outputs": REST_ANSWERS[fault]}), metadata()))
    what = "does not match its signature|cannot be read"
    check(peer.address, peer, True, what, "check which server|Something other", False)


@pytest.mark.parametrize("fault", RPC_ANSWERS)
def test_grpc_answers_of_another_type(peers, fault):
    def answer(peer, connection, stream):
        return grpc_answer(stream, RPC_ANSWERS[fault])

    peer = peers(rpc(answer, metadata()))
    what = "does not match its signature|cannot be read"
    check(peer.address, peer, False, what, "check which server|See which server", False)


@pytest.mark.parametrize("is_rest", [True, False])
def test_nobody_listens(is_rest):
    address = f"127.0.0.1:{server_cases.free_port()}"
    check(address, None, is_rest, "refused", "whether the server runs there", True)


@pytest.mark.parametrize("is_rest", [True, False])
def test_a_connection_that_hangs(peers, is_rest):
    peer = peers(None, backlog=0)
    check(peer.address, peer, is_rest, TIME, LONGER, True)


@pytest.mark.parametrize("is_rest", [True, False])
def test_a_server_that_takes_connections_and_is_silent(peers, is_rest):
    peer = peers(silent)
    check(peer.address, peer, is_rest, TIME, LONGER, True)


def test_the_other_protocols_port(peers):
    text, taken = ended(peers(rest(page(400))).address, is_rest=False)
    assert "http1.x" in text
    assert "use REST" in text
    assert taken < SECONDS / 2
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    text, taken = ended(f"127.0.0.1:{port}", is_rest=True)
    server.stop(None)
    assert "no HTTP" in text
    assert "for gRPC" in text
    assert taken < SECONDS / 2


def good(is_rest):
    if is_rest:
        return rest(json_page({"outputs": ANSWER}), metadata())
    return rpc(lambda peer, at, stream: grpc_answer(stream, proto_answer()), metadata())


@pytest.mark.parametrize("is_rest", [True, False])
def test_a_server_that_restarts_in_between(peers, is_rest):
    first = peers(good(is_rest))
    client = Client(first.address, "model", rest=is_rest, timeout=5.0)
    client.predict(X)
    first.close()
    later = []
    timer = threading.Timer(0.8, lambda: later.append(peers(good_later(is_rest), first.port)))
    timer.start()
    started = time.monotonic()
    found = client.predict(X)
    taken = time.monotonic() - started
    timer.join()
    assert found["steps"].tolist() == [3, 4]
    assert found["steps"].dtype == np.int32
    # Earlier it gave up after 0.7 s.
    assert 0.7 < taken < 3.0
    client.close()


def good_later(is_rest):
    """A server whose metadata the client already knows."""
    if is_rest:
        return good(True)
    return rpc(lambda peer, at, stream: grpc_answer(stream, proto_answer()))


@pytest.mark.parametrize("is_rest", [True, False])
def test_attempts_limit_what_the_deadline_allows(is_rest):
    address = f"127.0.0.1:{server_cases.free_port()}"
    text, taken = ended(address, is_rest=is_rest, seconds=9.0, attempts=2)
    assert "after 2 attempts in" in text
    assert taken < 1.0


def test_an_idle_connection_that_the_server_closed_costs_no_attempt(peers):
    def once(peer, connection):
        connection.sendall(json_page({"outputs": ANSWER}))
        hang_up(peer, connection)

    peer = peers(rest(once, metadata()))
    client = Client(peer.address, "model", rest=True, attempts=1, timeout=2.0)
    for _ in range(3):
        assert client.predict(X)["y"].tolist() == [1.0, 2.0]
        time.sleep(0.05)
    client.close()


@pytest.mark.parametrize(
    "content", [b"[" + b"0.25," * 2_000_000 + b"0]", b"[" + b"[0]," * 500_000 + b"0]"]
)
def test_answers_that_cannot_be_read_in_time(peers, content):
    """Reading JSON cannot be interrupted, so it is not started."""
    peer = peers(rest(page(200, content), metadata()))
    client = Client(peer.address, "model", rest=True, timeout=SECONDS)
    started = time.monotonic()
    with pytest.raises(ServerError, match="reading the answer's JSON.*gRPC is faster"):
        client.predict(X)
    assert time.monotonic() - started < SECONDS + LATE
    client.close()
