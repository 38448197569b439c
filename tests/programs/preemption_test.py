"""SIGTERM and Ctrl-C: where they are noted, and where they end a program."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from tfdeq.programs.preemption import EXIT_CODE, Preempted, noted_requests


def test_sigterm_is_noted_and_the_handler_from_before_comes_back():
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append("before"))
    try:
        with noted_requests() as requests:
            assert not requests.asked
            os.kill(os.getpid(), signal.SIGTERM)
            assert requests.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == ["before"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_first_interrupt_is_noted_and_the_second_does_what_it_did_before():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with noted_requests() as requests:
            os.kill(os.getpid(), signal.SIGINT)
            assert requests.asked
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_may_note_them():
    asked = []

    def run():
        with noted_requests() as requests:
            asked.append(requests.asked)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert asked == [False]


def test_preempted_is_an_exit_with_the_code_of_a_temporary_failure():
    assert Preempted(7).code == EXIT_CODE == os.EX_TEMPFAIL


PROGRAM = """
import os, signal, sys
import tests.support.light  # before the library
from tfdeq.programs import preemption

preemption.end_on_request()
ask = lambda number: os.kill(os.getpid(), number)
{body}
"""


def end(body):
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in found.stderr, found.stderr
    return found.returncode, found.stdout.split()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_program_ends_at_once_but_where_requests_are_noted_or_held_back(number):
    assert end(f"ask({number})\nprint('on')") == (EXIT_CODE, [])
    noted = (
        "with preemption.noted_requests() as requests:\n"
        "    print(requests.asked)\n"
        f"    ask({number})\n"
        "    print(requests.asked)\n"
        "print('after')\n"  # whoever noted it decides
    )
    assert end(noted) == (0, ["False", "True", "after"])
    held = (
        "with preemption.requests_held_back():\n"
        "    with preemption.requests_held_back():\n"
        f"        ask({number})\n"
        "    print('inside')\n"
        "print('after')\n"
    )
    assert end(held) == (EXIT_CODE, ["inside"])


def test_a_second_interrupt_ends_a_program_and_a_second_sigterm_does_not():
    body = (
        "with preemption.noted_requests():\n"
        "    ask({})\n"
        "    ask({})\n"
        "    print('on', flush=True)\n"
        "    ask({})\n"
        "    print('and on', flush=True)\n"
    )
    term, interrupt = int(signal.SIGTERM), int(signal.SIGINT)
    assert end(body.format(term, interrupt, interrupt)) == (-signal.SIGINT, ["on"])
    assert end(body.format(interrupt, term, term)) == (0, ["on", "and", "on"])


def test_a_program_that_is_done_is_not_disturbed_any_more():
    body = "preemption.ignore_requests()\nask({})\nask({})\nprint('done')"
    assert end(body.format(int(signal.SIGTERM), int(signal.SIGINT))) == (0, ["done"])


def test_a_handler_of_a_library_below_does_not_stay():
    body = (
        # As TensorFlow does for several workers: below Python, which does not learn of it.
        "import ctypes\n"
        f"ctypes.CDLL(None).signal({int(signal.SIGTERM)}, ctypes.c_void_p(1))  # SIG_IGN\n"
        f"ask({int(signal.SIGTERM)})\n"
        "print('unheard', flush=True)\n"
        "{}\n"
        f"    ask({int(signal.SIGTERM)})\n"
        "    print('noted', flush=True)\n"
    )
    assert end(body.format("preemption.hear_requests()\nif True:")) == (EXIT_CODE, ["unheard"])
    noted = body.format("with preemption.noted_requests() as requests:")
    assert end(noted + "print(requests.asked)") == (0, ["unheard", "noted", "True"])
