"""TLS, certificates, headers and tokens, with local servers whose certificates `openssl` makes."""

import concurrent.futures
import http.server
import itertools
import json
import shutil
import ssl
import subprocess
import threading
import time

import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tests.support.server_cases import (  # noqa: F401
    ANSWER,
    metadata,
    peers,
    proto_answer,
    silent,
)
from tfdeq.serving.client.client_access import Access
from tfdeq.serving.client.model_client import Client, ServerError

X = {"x": np.ones([2, 2], np.float32)}
SECRET = "open sesame"


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """An authority, and what it signed: for a server here, one elsewhere, and a client."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    openssl("req", "-x509", *key, "-keyout", "authority.key", "-out", "authority.pem", "-days", "2",
            "-subj", "/CN=Test authority")  # fmt: skip
    for name, subject in {
        "server": "DNS:localhost,IP:127.0.0.1",
        "elsewhere": "DNS:elsewhere.test",
        "client": "DNS:client.test",
    }.items():
        (folder / f"{name}.ext").write_text(f"subjectAltName={subject}\n")
        openssl(
            "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "authority.pem", "-CAkey",
                "authority.key", "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext",
                "-out", f"{name}.pem")  # fmt: skip
    both = (folder / "client.pem").read_text() + (folder / "client.key").read_text()
    (folder / "both.pem").write_text(both)
    return folder


class Seen:
    """The headers that a server received, and the token that it accepts."""

    def __init__(self):
        self.headers, self.token, self.asked = [], None, None

    def refuses(self, headers):
        self.headers.append({name.lower(): value for name, value in headers.items()})
        return self.token is not None and self.headers[-1].get("authorization") != self.token


def start_rest(folder, name, asks_client):
    seen = Seen()
    described = json_format.MessageToDict(metadata(), preserving_proto_field_name=True)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self, body):
            refused = seen.refuses(self.headers)
            content = json.dumps({"error": "who are you"} if refused else body).encode()
            self.send_response(401 if refused else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            if self.path.endswith("/metadata"):
                return self.reply({"metadata": {"signature_def": described}})
            seen.asked = self.path
            failed = {"error_code": "UNKNOWN", "error_message": "no file"}
            states = [
                {"version": "4", "state": "END", "status": failed},
                {"version": "3", "state": "AVAILABLE", "status": {"error_code": "OK"}},
            ]
            return self.reply({"model_version_status": states})

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.reply({"outputs": ANSWER})

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_):
            """A client that refuses the certificate is not an error here."""

    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    if asks_client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(folder / "authority.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def stop():
        server.shutdown()
        thread.join()
        server.server_close()

    return f"127.0.0.1:{server.server_address[1]}", seen, stop


def start_grpc(folder, name, asks_client):
    seen = Seen()

    class Servicer(prediction_service_pb2_grpc.PredictionServiceServicer):
        def check(self, context):
            if seen.refuses(dict(context.invocation_metadata())):
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you")

        def GetModelMetadata(self, request, context):
            self.check(context)
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.metadata["signature_def"].Pack(metadata())
            return response

        def Predict(self, request, context):
            self.check(context)
            return predict_pb2.PredictResponse.FromString(proto_answer())

    class Models(model_service_pb2_grpc.ModelServiceServicer):
        def GetModelStatus(self, request, context):
            spec = request.model_spec
            seen.asked = (str(spec.version.value or ""), spec.version_label)
            found = get_model_status_pb2.GetModelStatusResponse()
            failed = found.model_version_status.add(version=4, state=50)  # END
            failed.status.error_message = "no file"
            found.model_version_status.add(version=3, state=30)  # AVAILABLE
            return found

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Models(), server)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Servicer(), server)
    pair = (folder / f"{name}.key").read_bytes(), (folder / f"{name}.pem").read_bytes()
    authority = (folder / "authority.pem").read_bytes() if asks_client else None
    credentials = grpc.ssl_server_credentials([pair], authority, asks_client)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    return f"127.0.0.1:{port}", seen, lambda: server.stop(None).wait()


@pytest.fixture(params=["grpc", "rest"])
def start(request, certificates):
    """Starts servers with a certificate."""
    stops = []

    def start(name="server", asks_client=False):
        kind = {"grpc": start_grpc, "rest": start_rest}[request.param]
        address, seen, stop = kind(certificates, name, asks_client)
        stops.append(stop)
        return address, seen, request.param == "rest"

    yield start
    for stop in stops:
        stop()


def test_headers_and_a_token_reach_a_server_that_the_authority_vouches_for(start, certificates):
    address, seen, rest = start()
    seen.token = f"Bearer {SECRET} 2"
    tokens = itertools.chain([f"{SECRET} 2"] * 2, itertools.repeat(f"{SECRET} 3"))
    asked = Client(
        f"https://{address}",
        "model",
        rest=rest,
        headers={"X-Team": "blue"},
        token=lambda: next(tokens),
        certificate_authority=certificates / "authority.pem",
    )
    np.testing.assert_allclose(asked.predict(X)["y"], ANSWER["y"])
    assert [headers["x-team"] for headers in seen.headers] == ["blue", "blue"]
    # The third token has expired.
    with pytest.raises(ServerError, match="who are you.*did not accept who you are") as found:
        asked.predict(X)
    assert SECRET not in str(found.value)
    asked.close()


def test_connections_are_kept_over_tls(start, certificates):
    address, _, rest = start()
    asked = Client(
        address, "model", rest=rest, certificate_authority=certificates / "authority.pem"
    )
    for _ in range(3):
        assert asked.predict(X)["steps"].tolist() == ANSWER["steps"]
    if rest:
        assert len(asked._transport._idle) == 1
    asked.close()


def test_versions_labels_and_signatures(start, certificates):
    address, seen, rest = start()
    authority = certificates / "authority.pem"
    asked = Client(address, "model", rest=rest, version="stable", certificate_authority=authority)
    assert asked.status() == [(4, "END", "no file"), (3, "AVAILABLE", "")]
    assert (
        seen.asked
        == {"rest": "/v1/models/model/labels/stable", "grpc": ("", "stable")}[
            "rest" if rest else "grpc"
        ]
    )
    (served,) = asked.signatures().values()
    assert served.inputs.keys() == {"x", "tolerance", "max_steps"}
    asked.close()
    with pytest.raises(ValueError, match="closed"):
        asked.status()


@pytest.mark.parametrize("name", ["server", "elsewhere"])
def test_a_server_that_cannot_be_trusted_is_not_asked(start, certificates, name):
    """Signed by nobody whom the system knows; or by the authority, for another name."""
    address, seen, rest = start(name)
    known = {} if name == "server" else {"certificate_authority": certificates / "authority.pem"}
    started = time.monotonic()
    with pytest.raises(ServerError, match="certificate is not trusted"):
        Client(f"https://{address}", "model", rest=rest, timeout=20.0, **known).predict(X)
    assert time.monotonic() - started < 10
    assert not seen.headers


def test_a_server_that_asks_for_the_clients_certificate(start, certificates):
    address, seen, rest = start(asks_client=True)
    known = {"certificate_authority": certificates / "authority.pem", "rest": rest}
    pair = certificates / "client.pem", certificates / "client.key"
    for given in (pair, certificates / "both.pem"):
        asked = Client(address, "model", client_certificate=given, **known)
        assert asked.predict(X)["steps"].tolist() == ANSWER["steps"]
    seen.headers.clear()
    with pytest.raises(ServerError):
        Client(address, "model", timeout=1.0, **known).predict(X)
    assert not seen.headers


@pytest.mark.parametrize("by_rest", [True, False])
def test_a_server_without_tls(peers, by_rest):  # noqa: F811
    def script(peer, connection):
        connection.recv(1)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        peer.ended.wait()

    address = peers(script).address
    with pytest.raises(ServerError, match="No TLS connection to that port"):
        Client(f"https://{address}", "model", rest=by_rest, timeout=20.0).predict(X)


def test_a_handshake_that_hangs_ends_with_the_timeout(peers):  # noqa: F811
    peer = peers(silent)
    for by_rest in (True, False):
        started = time.monotonic()
        with pytest.raises(ServerError, match="No answer from the server"):
            Client(f"https://{peer.address}", "model", rest=by_rest, timeout=0.5).predict(X)
        assert time.monotonic() - started < 3  # the machine may be busy


def test_what_cannot_be_sent_is_refused_at_once(certificates, tmp_path):
    with pytest.raises(ValueError, match="A token for 'models.test:8500' could be read on the way"):
        Access("models.test:8500", token=SECRET)
    for address in ("https://models.test", "localhost:8500", "127.0.0.1:8501/a", "[::1]:8500"):
        assert Access(address, token=SECRET).headers() == {"authorization": f"Bearer {SECRET}"}
    for headers in ({"a b": "c"}, {"": "c"}, {"a": "b\r\nc: d"}, {"a": "ü"}, {"a": 3}):
        with pytest.raises(ValueError, match="cannot be sent"):
            Access("localhost:8500", headers=headers)
    with pytest.raises(ValueError, match="cannot be sent"):
        Access("localhost:8500", token=lambda: "a\nb").headers()
    with pytest.raises(ValueError, match="without TLS, which takes no certificates"):
        Access("http://localhost:1", certificate_authority=certificates / "authority.pem")
    with pytest.raises(ValueError, match="pair of files"):
        Access("localhost:1", client_certificate=("a", "b", "c"))
    with pytest.raises(FileNotFoundError):
        Access("localhost:1", certificate_authority=tmp_path / "missing.pem")
    (tmp_path / "empty.pem").write_text("nothing")
    with pytest.raises(ssl.SSLError):
        Access("localhost:1", certificate_authority=tmp_path / "empty.pem")
