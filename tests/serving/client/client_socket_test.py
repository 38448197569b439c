"""Waits that end by the deadline; client_faults_test.py tests whole calls."""

import socket
import threading
import time

import pytest

from tfdeq.serving.client import client_socket


def test_a_name_that_is_looked_up_for_ever(monkeypatch):
    own, ended = socket.getaddrinfo, threading.Event()

    def look_up(host, *args, **options):
        if options.get("flags"):
            return own(host, *args, **options)
        ended.wait(5)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        client_socket.connect("nowhere.invalid", 80, started + 0.3)
    assert time.monotonic() - started < 0.5
    ended.set()


def test_a_name_that_is_not_known(monkeypatch):
    def look_up(*args, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(OSError, match="nowhere.invalid: .*not known"):
        client_socket.connect("nowhere.invalid", 80, time.monotonic() + 5.0)


def test_the_next_address_is_tried(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", at)
            for at in (nobody.getsockname(), listener.getsockname())
        ]
        monkeypatch.setattr(client_socket, "_addresses", lambda *_: found)
        with client_socket.connect("a name", 80, time.monotonic() + 5.0) as connected:
            assert connected.getpeername() == listener.getsockname()


def test_many_bytes_one_at_a_time():
    ours, theirs = socket.socketpair()
    with client_socket.DeadlineSocket(ours.family, ours.type, 0, ours.detach()) as reader, theirs:
        reader.deadline = time.monotonic() + 0.5
        ended = threading.Event()

        def drip():
            while not ended.wait(0.05):
                theirs.sendall(b".")

        thread = threading.Thread(target=drip)
        thread.start()
        with pytest.raises(TimeoutError):
            reader.makefile("rb").read(1000)
        assert time.monotonic() - reader.deadline < 0.2
        ended.set()
        thread.join()


def test_whether_a_connection_is_kept():
    ours, theirs = socket.socketpair()
    with client_socket.DeadlineSocket(ours.family, ours.type, 0, ours.detach()) as kept:
        assert kept.is_quiet()
        theirs.close()
        assert not kept.is_quiet()
