"""What a trainer does when its machine is taken away, or that of another worker."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

# EX_TEMPFAIL of sysexits.h, "try again later": a scheduler that requeues by exit code runs it again.
EXIT_CODE = 75

# What a collective operation ends with when a worker no longer answers.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.FailedPreconditionError,
    tf.errors.UnknownError,
)


class Preempted(SystemExit):
    """The run has to end before its last step; the same command goes on from its last checkpoint."""

    def __init__(self, step: int):
        super().__init__(EXIT_CODE)
        self.step = step


class Preemption:
    """Use as a context: while it is open, SIGTERM or Ctrl-C does not end the process but sets `asked`.

    A second Ctrl-C ends it at once, without a checkpoint of the last step.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        # Python lets the main thread alone set handlers.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, *_: Any) -> None:
        self.asked = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._before[number])


@contextlib.contextmanager
def other_worker_lost(several_workers: bool, step: int) -> Iterator[None]:
    """Turns what TensorFlow raises when another worker has ended into `Preempted`."""
    try:
        yield
    except _LOST as error:
        if not several_workers:
            raise
        print(
            "Another worker does not answer any more; every worker has to be started again, and goes "
            f"on from the last checkpoint. TensorFlow says: {_reason(error)}",
            flush=True,
        )
        raise Preempted(step) from error


def _reason(error: Exception) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(_SAYS_NOTHING)]
    return f"{type(error).__name__}: {said[0] if said else 'no reason'}"


_SAYS_NOTHING = ("Graph execution error", "Detected at node")
