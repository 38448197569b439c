"""SIGTERM while the context is open, and what it leaves when it closes."""

import os
import signal
import threading

from trainers.preemption import EXIT_CODE, Preempted, Preemption


def test_sigterm_is_noted_and_the_handler_from_before_comes_back():
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append("before"))
    try:
        with Preemption() as preemption:
            assert not preemption.asked
            os.kill(os.getpid(), signal.SIGTERM)
            assert preemption.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == ["before"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_may_open_it():
    asked = []

    def run():
        with Preemption() as preemption:
            asked.append(preemption.asked)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert asked == [False]


def test_preempted_is_an_exit_with_the_code_of_a_temporary_failure():
    assert Preempted(7).code == EXIT_CODE == os.EX_TEMPFAIL
