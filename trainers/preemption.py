"""What a trainer does when its machine is taken away: SIGTERM is noted, and acted on between two steps."""

import signal
import threading
from typing import Any

# EX_TEMPFAIL of sysexits.h, "try again later": a scheduler that requeues by exit code runs it again.
EXIT_CODE = 75


class Preempted(SystemExit):
    """The run was asked to end, and has saved where it was; the same command goes on from there."""

    def __init__(self, step: int):
        super().__init__(EXIT_CODE)
        self.step = step


class Preemption:
    """Use as a context: while it is open, SIGTERM does not end the process but sets `asked`."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> "Preemption":
        # Python lets the main thread alone set handlers.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_: Any) -> None:
        self.asked = True
