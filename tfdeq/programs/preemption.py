"""Requests to end a run before its last step: SIGTERM, which schedulers send, or Ctrl-C."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

# EX_TEMPFAIL of sysexits.h, "try again later": a scheduler that requeues by exit code restarts the
# run.
EXIT_CODE = 75
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(SystemExit):
    """The run must end before it is done; the same command continues from its last checkpoint.

    Attributes:
        step: the step that it reached; None if it was not in its training loop.
    """

    def __init__(self, step: int | None = None):
        super().__init__(EXIT_CODE)
        self.step = step


class AskedToEnd(Preempted):
    """A signal asked this process to end while it had nothing to save."""


class _Requests:
    """The requests to end that this process receives, from `open` to `close`.

    Args:
        end: whether a request that is not `noted` raises `AskedToEnd` in the main thread, and a second
            Ctrl-C ends the process at once.

    Attributes:
        asked: whether there was a request.
    """

    def __init__(self, end: bool):
        self.asked = False
        self._end = end
        self._noted = not end
        self._before: dict[int, Any] = {}

    def open(self) -> None:
        # In Python only the main thread may set handlers.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def hear(self) -> None:
        """Sets the handler of SIGTERM again, because TensorFlow sets its own for several workers."""
        if self._before and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._receive)

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        self.hear()
        before, self._noted = self._noted, True
        try:
            yield
        finally:
            self._noted = before

    def _receive(self, number: int, *_: Any) -> None:
        first, self.asked = not self.asked, True
        if number == signal.SIGINT:
            # The system's handler: Python's would wait for the end of a TensorFlow call.
            signal.signal(number, signal.SIG_DFL if self._end else self._before[number])
        if first:
            self.end_if_asked()

    def end_if_asked(self) -> None:
        """Raises `AskedToEnd` if there was a request, unless requests are only noted."""
        if self.asked and not self._noted:
            raise AskedToEnd


_program: _Requests | None = None


def end_on_request() -> None:
    """Makes SIGTERM and Ctrl-C end this process with EXIT_CODE, by `AskedToEnd`.

    Use it for programs that continue where they ended. A second Ctrl-C ends the process at once.
    """
    global _program
    _program = _Requests(end=True)
    _program.open()


def hear_requests() -> None:
    """Sets the handler of `end_on_request` again, if that was called, after TensorFlow set its own.

    TensorFlow does so for SIGTERM when a strategy for several workers is created.
    """
    if _program is not None:
        _program.hear()


def ignore_requests() -> None:
    """Makes SIGTERM and Ctrl-C do nothing, for a program that is done and about to end."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def requests_held_back() -> Iterator[None]:
    """A context in which a request does not end the process until the context ends.

    Use it around code that an unexpected exception must not interrupt.
    """
    if _program is None:
        yield
        return
    with _program.noted():
        yield
    _program.end_if_asked()


@contextlib.contextmanager
def noted_requests() -> Iterator[_Requests]:
    """A context in which SIGTERM or Ctrl-C only sets `asked` of the object that it yields.

    A second Ctrl-C does what Ctrl-C did before; it ends a program at once.
    """
    if _program is not None:
        with _program.noted():
            yield _program
        return
    own = _Requests(end=False)
    own.open()
    try:
        yield own
    finally:
        own.close()
