"""SIGTERM while the context is open, and what it leaves when it closes."""

import os
import signal
import threading

import pytest
import tensorflow as tf

from trainers.preemption import EXIT_CODE, Preempted, Preemption, other_worker_lost


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


def test_the_first_interrupt_is_noted_and_the_second_ends():
    before = signal.getsignal(signal.SIGINT)
    with Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


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


def _lose(several_workers, error):
    with other_worker_lost(several_workers, 7):
        raise error


def test_a_lost_worker_ends_the_others_with_the_status_that_asks_for_a_restart(capsys):
    message = "Graph execution error:\n\nDetected at node x\n Collective ops is aborted by: reset\n"
    with pytest.raises(Preempted) as caught:
        _lose(True, tf.errors.UnavailableError(None, None, message))
    assert (caught.value.code, caught.value.step) == (EXIT_CODE, 7)
    printed = capsys.readouterr().out
    assert "every worker has to be started again" in printed
    assert "UnavailableError: Collective ops is aborted by: reset" in printed


def test_other_errors_stay_what_they_are():
    with pytest.raises(tf.errors.UnavailableError):
        _lose(False, tf.errors.UnavailableError(None, None, "no worker here"))
    with pytest.raises(ValueError, match="mine"):
        _lose(True, ValueError("mine"))
