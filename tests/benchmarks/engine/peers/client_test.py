import sys
import textwrap

import pytest

from benchmarks.engine.peers import client

WORKER = """
    import sys
    from benchmarks.engine.peers import protocol

    class Toy(protocol.Worker):
        def do_add(self, one, two):
            print("a library's chatter")
            return {"sum": one + two}

        def do_fail(self):
            raise ValueError("the toy is broken")

        def do_die(self):
            sys.exit("the toy dies")

    protocol.serve(Toy)
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "toy_worker.py").write_text(textwrap.dedent(WORKER))
    monkeypatch.chdir(tmp_path)  # `python -m` looks here first
    log = str(tmp_path / "toy.log")
    with client.Client("toy_worker", sys.executable, log, threads=1) as worker:
        yield worker


@pytest.mark.slow
def test_answers_come_back_without_what_libraries_print(toy, tmp_path):
    assert toy.ask("add", one=1, two=2) == {"sum": 3}
    assert toy.ask("add", one=3, two=4) == {"sum": 7}
    assert "chatter" in (tmp_path / "toy.log").read_text()


def test_an_error_is_told_and_the_worker_goes_on(toy):
    with pytest.raises(client.WorkerError, match="ValueError: the toy is broken"):
        toy.ask("fail")
    assert toy.ask("add", one=1, two=1) == {"sum": 2}


@pytest.mark.slow
def test_a_worker_that_has_ended_is_told_with_its_last_words(toy):
    with pytest.raises(client.WorkerError, match="has ended: the toy dies"):
        toy.ask("die")
    with pytest.raises(client.WorkerError, match="has ended"):
        toy.ask("add", one=1, two=1)


def test_a_missing_framework_shows_at_the_first_question(tmp_path):
    log = str(tmp_path / "none.log")
    with (
        client.Client("no_such_worker", sys.executable, log, threads=1) as worker,
        pytest.raises(client.WorkerError, match="No module named .?no_such_worker"),
    ):
        worker.ask("hello")
