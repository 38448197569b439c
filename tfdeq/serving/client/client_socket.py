"""Connections with one deadline for all waits."""

import contextlib
import queue
import socket
import ssl
import threading
import time
from typing import Any


def seconds_left(deadline: float) -> float:
    """Returns the seconds until a time of time.monotonic().

    Raises:
        TimeoutError: if there are none.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


class DeadlineSocket(socket.socket):
    """A socket that never waits beyond `deadline`, even if the peer keeps sending single bytes.

    A socket's own timeout starts again with every read.
    """

    deadline = 0.0

    def recv_into(self, *args: Any, **options: Any) -> int:
        self.settimeout(seconds_left(self.deadline))
        return super().recv_into(*args, **options)

    def sendall(self, *args: Any, **options: Any) -> None:
        self.settimeout(seconds_left(self.deadline))  # for the whole send
        return super().sendall(*args, **options)

    def is_quiet(self) -> bool:
        """Whether the peer has neither closed the connection nor sent anything unexpected."""
        self.setblocking(False)
        try:
            self.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


class DeadlineTLSSocket(ssl.SSLSocket):
    """The same over TLS."""

    deadline = 0.0

    def recv_into(self, *args: Any, **options: Any) -> int:
        self.settimeout(seconds_left(self.deadline))
        return super().recv_into(*args, **options)

    def send(self, *args: Any, **options: Any) -> int:
        self.settimeout(seconds_left(self.deadline))  # of one record; sendall calls it for each
        return super().send(*args, **options)

    def is_quiet(self) -> bool:
        """Whether the peer has neither closed the connection nor sent anything unexpected."""
        self.setblocking(False)
        try:
            self.recv(1)  # TLS cannot peek, and reads its own messages, such as tickets, meanwhile
        except ssl.SSLWantReadError:
            return True
        except OSError:
            return False
        return False


def secured(connection: DeadlineSocket, context: ssl.SSLContext, host: str) -> DeadlineTLSSocket:
    """Returns a connection over TLS to the host that its certificate names.

    Raises:
        TimeoutError, ssl.SSLError, OSError: if there is none before the connection's deadline.
    """
    deadline = connection.deadline
    context.sslsocket_class = DeadlineTLSSocket
    try:
        connection.settimeout(seconds_left(deadline))  # for the whole handshake
        found = context.wrap_socket(connection, server_hostname=host)
    except BaseException:
        connection.close()
        raise
    found.deadline = deadline
    return found


def connect(host: str, port: int, deadline: float) -> DeadlineSocket:
    """Returns a connection to the first of a host's addresses that accepts one.

    Raises:
        TimeoutError: if none does before the deadline.
        OSError: for an unknown host, or if no address accepts a connection.
    """
    found = _addresses(host, port, deadline)
    problem: OSError = OSError(f"{host} has no address")
    for index, (family, kind, protocol, _, address) in enumerate(found):
        connection = DeadlineSocket(family, kind, protocol)
        try:
            # If one address hangs, there is time left for the others.
            connection.settimeout(seconds_left(deadline) / (len(found) - index))
            connection.connect(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            connection.close()
            problem = error
        else:
            connection.deadline = deadline
            return connection
    raise problem


def _addresses(host: str, port: int, deadline: float) -> list[Any]:
    with contextlib.suppress(socket.gaierror):
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    # A name lookup has no timeout, so it runs in a thread.
    found: queue.SimpleQueue = queue.SimpleQueue()

    def look_up() -> None:
        try:
            found.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.put(error)

    threading.Thread(target=look_up, daemon=True).start()
    try:
        result = found.get(timeout=seconds_left(deadline))
    except queue.Empty:
        raise TimeoutError("timed out") from None
    if isinstance(result, Exception):
        raise OSError(f"{host}: {result}") from result
    return result
