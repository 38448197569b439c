"""Requests to end a run before its last step: SIGTERM, as schedulers send it, or Ctrl-C."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

# EX_TEMPFAIL of sysexits.h, "try again later": a scheduler that requeues by exit code runs it again.
EXIT_CODE = 75
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(SystemExit):
    """The run has to end before it is done; the same command goes on from its last checkpoint.

    Attributes:
        step: the step that it reached; None where it was not in its training loop.
    """

    def __init__(self, step: int | None = None):
        super().__init__(EXIT_CODE)
        self.step = step


class AskedToEnd(Preempted):
    """A signal asked this process to end where it had nothing to save."""


class _Requests:
    """The requests to end that this process receives, from `open` to `close`.

    Args:
        end: whether a request, where it is not `noted`, raises `AskedToEnd` in the main thread, and a
            second Ctrl-C ends the process as the system does.

    Attributes:
        asked: whether there was a request.
    """

    def __init__(self, end: bool):
        self.asked = False
        self._end = end
        self._noted = not end
        self._before: dict[int, Any] = {}

    def open(self) -> None:
        # Python lets the main thread alone set handlers.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def hear(self) -> None:
        """Sets the handler of SIGTERM anew: TensorFlow sets one of its own for several workers."""
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
            # Of the system: Python would wait for the end of a call of TensorFlow.
            signal.signal(number, signal.SIG_DFL if self._end else self._before[number])
        if first:
            self.end_if_asked()

    def end_if_asked(self) -> None:
        """Raises `AskedToEnd` if there was a request that is not only to be noted."""
        if self.asked and not self._noted:
            raise AskedToEnd


_program: _Requests | None = None


def end_on_request() -> None:
    """From now on SIGTERM and Ctrl-C end this process with EXIT_CODE, by `AskedToEnd`.

    For programs that go on where they ended. A second Ctrl-C ends it as the system does, at once.
    """
    global _program
    _program = _Requests(end=True)
    _program.open()


def hear_requests() -> None:
    """Sets the handler of `end_on_request` anew, where that was called, after TensorFlow set its own.

    It does so for SIGTERM when a strategy of several workers is made.
    """
    if _program is not None:
        _program.hear()


def ignore_requests() -> None:
    """From now on SIGTERM and Ctrl-C do nothing: the program is done, and on its way out."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def requests_held_back() -> Iterator[None]:
    """Inside it a request does not end the process; at its end it does.

    Around code that must not be left by an exception that it does not expect.
    """
    if _program is None:
        yield
        return
    with _program.noted():
        yield
    _program.end_if_asked()


@contextlib.contextmanager
def noted_requests() -> Iterator[_Requests]:
    """Inside it SIGTERM or Ctrl-C does not end the process but sets `asked` of what it gives.

    A second Ctrl-C does what Ctrl-C did before; in a program, it ends it at once.
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
