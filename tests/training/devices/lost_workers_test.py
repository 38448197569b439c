"""Which errors mean that another worker is gone, and which would occur again."""

import pytest
import tensorflow as tf

from tfdeq.programs.preemption import EXIT_CODE, Preempted
from tfdeq.training.devices.lost_workers import other_worker_lost

ABORTED = (
    "Graph execution error:\n\nDetected at node x defined at (most recent call last):\n"
    '  File "a.py", line 1, in <module>\n Collective ops is aborted by: reset\n'
)


def lose(several_workers, error):
    with other_worker_lost(several_workers):
        raise error


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tf.errors.UnavailableError, ABORTED),
        (tf.errors.UnavailableError, "whatever it says"),
        (tf.errors.InternalError, ABORTED),
        (tf.errors.InternalError, "From /job:worker/replica:0/task:1: Socket closed"),
        (tf.errors.UnknownError, "Connection reset by peer"),
        (tf.errors.UnknownError, "recvmsg:Connection reset by peer"),
        (tf.errors.DeadlineExceededError, "failed to connect to all addresses"),
        (tf.errors.AbortedError, "Session 12 is not found; the task has been restarted."),
        (tf.errors.FailedPreconditionError, "Coordination service agent is in error"),
    ],
)
def test_a_lost_worker_ends_the_others_with_the_status_that_asks_for_a_restart(
    capsys, kind, message
):
    with pytest.raises(Preempted) as caught:
        lose(True, kind(None, None, message))
    assert caught.value.code == EXIT_CODE
    printed = capsys.readouterr().out
    assert "Start all workers again" in printed
    if message == ABORTED:
        assert f"{kind.__name__}: Collective ops is aborted by: reset" in printed
    with pytest.raises(kind):  # there is no other worker
        lose(False, kind(None, None, message))


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.InternalError(None, None, "libdevice not found at ./libdevice.10.bc"),
        tf.errors.FailedPreconditionError(None, None, "Could not find variable a/b"),
        tf.errors.UnknownError(None, None, "Failed to determine best cudnn convolution algorithm"),
        tf.errors.CancelledError(None, None, "Operation was cancelled"),
        tf.errors.InvalidArgumentError(None, None, "Connection reset is not a shape"),
        ValueError("mine"),
    ],
)
def test_what_would_come_again_stays_what_it_is(error, capsys):
    with pytest.raises(type(error)) as caught:
        lose(True, error)
    assert caught.value is error
    assert not capsys.readouterr().out
