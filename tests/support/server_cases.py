"""Servers on the loopback device that fail like real ones, in HTTP/1.1 and in gRPC's HTTP/2.

Tests that import this module get the fixture `peers`.
"""

import contextlib
import json
import socket
import struct
import threading

import pytest
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2

_ROWS = tf.TensorSpec([None], tf.float32)


def metadata(**inputs):
    """Returns the signature of these servers' model; inputs: name -> tf.TensorSpec."""
    inputs = inputs or {"x": tf.TensorSpec([None, 2], tf.float32)}
    counts = tf.TensorSpec([None], tf.int32)
    outputs = {"y": _ROWS, "residual": _ROWS, "steps": counts, "status": counts}
    found = get_model_metadata_pb2.SignatureDefMap()
    definition = found.signature_def["serving_default"]
    for tensors, specs in (
        (definition.inputs, {**inputs, "tolerance": _ROWS, "max_steps": counts}),
        (definition.outputs, outputs),
    ):
        for name, spec in specs.items():
            tensors[name].dtype = spec.dtype.as_datatype_enum
            tensors[name].tensor_shape.CopyFrom(spec.shape.as_proto())
    return found


ANSWER = {"y": [1.0, 2.0], "residual": [0.5, 0.25], "steps": [3, 4], "status": [0, 0]}


class Peer:
    """A server of one script: script(peer, connection) runs for each connection.

    Attributes:
        requests: how many requests its scripts counted.
        ended: an event; scripts that wait, wait for it.
    """

    def __init__(self, script, port=0, backlog=20):
        self.requests, self.ended = 0, threading.Event()
        self._script, self._open = script, []
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", port))
        self._listener.listen(backlog)
        self.port = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._threads = []
        if script is None:  # it accepts no connection: two fill the queue, and the next one hangs
            for _ in range(3):
                waiting = socket.socket()
                waiting.setblocking(False)
                waiting.connect_ex(("127.0.0.1", self.port))
                self._open.append(waiting)
        else:
            self._start(self._accept)

    def _start(self, work, *args):
        thread = threading.Thread(target=work, args=args)
        thread.start()
        self._threads.append(thread)

    def _accept(self):
        with contextlib.suppress(OSError):
            while not self.ended.is_set():
                connection, _ = self._listener.accept()
                self._open.append(connection)
                self._start(self._serve, connection)

    def _serve(self, connection):
        with contextlib.suppress(OSError, EOFError), connection:
            self._script(self, connection)

    def close(self):
        self.ended.set()
        for connection in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()


@pytest.fixture
def peers():
    """Makes peers, and ends them."""
    made = []

    def make(*args, **options):
        made.append(Peer(*args, **options))
        return made[-1]

    yield make
    for peer in made:
        peer.close()


def free_port():
    """Returns a port without a server."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def drip(peer, connection, content):
    """Sends a byte every tenth of a second."""
    for byte in content:
        connection.sendall(bytes([byte]))
        if peer.ended.wait(0.1):
            return


def hang_up(peer, connection, *_):
    """Closes a connection at once, even if others hold it."""
    connection.shutdown(socket.SHUT_RDWR)


def silent(peer, connection):
    """Accepts connections and sends nothing."""
    peer.ended.wait()


def page(status, content=b"<html>Bad gateway</html>", kind="text/html", length=None):
    """An answer of HTTP/1.1."""
    length = len(content) if length is None else length
    head = f"HTTP/1.1 {status} x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    return head.encode() + content


def json_page(value):
    return page(200, json.dumps(value).encode(), "application/json")


def rest(answer, described=None):
    """Returns a script of a server with the metadata `described`, which answers all else by `answer`.

    Args:
        answer: (peer, connection) -> None, or the bytes to send.
        described: None: metadata are also answered by `answer`.
    """

    def script(peer, connection):
        stream = connection.makefile("rb")
        while line := stream.readline():
            length = 0
            while (header := stream.readline()) not in (b"\r\n", b""):
                if header.lower().startswith(b"content-length:"):
                    length = int(header.split(b":")[1])
            stream.read(length)
            peer.requests += 1
            if described is not None and line.startswith(b"GET"):
                found = json_format.MessageToDict(described, preserving_proto_field_name=True)
                connection.sendall(json_page({"metadata": {"signature_def": found}}))
            elif isinstance(answer, bytes):
                connection.sendall(answer)
            else:
                answer(peer, connection)

    return script


_DATA, _HEADERS, _SETTINGS, _PING = 0, 1, 4, 6


def frame(kind, flags, stream, content=b""):
    """A frame of HTTP/2."""
    return struct.pack("!I", len(content))[1:] + struct.pack("!BBI", kind, flags, stream) + content


def h2_header(stream, kind=b"application/grpc"):
    """:status 200 and a content type."""
    return frame(_HEADERS, 4, stream, b"\x88\x0f\x10" + bytes([len(kind)]) + kind)


def h2_message(stream, content):
    """A message of gRPC, in frames of the usual size."""
    content = b"\0" + struct.pack("!I", len(content)) + content
    pieces = [content[start : start + 16384] for start in range(0, len(content), 16384)]
    return b"".join(frame(_DATA, 0, stream, piece) for piece in pieces)


def h2_data(stream, content):
    """The last bytes of an answer that is not gRPC's."""
    return frame(_DATA, 1, stream, content)


def h2_end(stream):
    return frame(_HEADERS, 5, stream, b"\x00\x0bgrpc-status\x010")


def grpc_answer(stream, content):
    return h2_header(stream) + h2_message(stream, content) + h2_end(stream)


def rpc(answer, described=None):
    """Like `rest`, for a gRPC server; answer: (peer, connection, stream) -> None or bytes."""

    def script(peer, connection):
        stream = connection.makefile("rb")

        def read(size):
            content = stream.read(size)
            if len(content) < size:
                raise EOFError
            return content

        read(24)  # the client's preface
        connection.sendall(frame(_SETTINGS, 0, 0))
        while True:
            length, kind, flags, number = struct.unpack("!IBBI", b"\0" + read(9))
            content = read(length)
            if kind == _SETTINGS and not flags:
                connection.sendall(frame(_SETTINGS, 1, 0))
            if kind == _PING and not flags:
                connection.sendall(frame(_PING, 1, 0, content))
            if kind not in (_DATA, _HEADERS) or not flags & 1:
                continue
            peer.requests += 1
            if described is not None and peer.requests == 1:
                found = get_model_metadata_pb2.GetModelMetadataResponse()
                found.metadata["signature_def"].Pack(described)
                connection.sendall(grpc_answer(number, found.SerializeToString()))
                continue
            sent = answer(peer, connection, number) if callable(answer) else answer
            if sent is not None:
                connection.sendall(sent)

    return script


def proto_answer(values=ANSWER):
    """A PredictResponse, as bytes."""
    found = predict_pb2.PredictResponse()
    for name, value in values.items():
        found.outputs[name].CopyFrom(tf.make_tensor_proto(value))
    return found.SerializeToString()
