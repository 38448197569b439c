"""A call with a deadline, which retries while that may help and reports why there is no answer."""

import itertools
import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 1.0
# With less time left than this, another attempt would not finish.
_SHORTEST_ATTEMPT_SECONDS = 0.02
LONGEST_QUOTE = 2000  # characters of a server's message

TAKE_LONGER = (
    "Give a longer timeout, a smaller batch, a larger tolerance or fewer max_steps; and see whether "
    "the server runs there and is not overloaded."
)
ANSWER_TOO_LARGE = (
    "The answer is larger than max_answer_bytes = {limit:,}. Ask with a smaller batch, or for a "
    "signature with smaller outputs, or set max_answer_bytes higher."
)


class ServerError(ChildProcessError):
    """The server refused, or did not answer in time; the message quotes it and says what to do."""


class NoSignatureError(ServerError):
    """The model has no signature of that name."""


class NotNow(Exception):
    """There was no answer, and asking again may help."""

    def __init__(self, problem: str, advice: str):
        super().__init__(problem)
        self.problem, self.advice = problem[:LONGEST_QUOTE], advice


def out_of_time(doing: str) -> NotNow:
    """Returns the error that an attempt raises when the deadline passes."""
    return NotNow(f"the time ran out while {doing}", TAKE_LONGER)


def require_time(seconds: float, deadline: float, work: str) -> None:
    """Checks that work which cannot be interrupted will end before the deadline.

    Args:
        seconds: a high estimate of its duration.
        deadline: a time of time.monotonic().
        work: description, such as "writing the request".

    Raises:
        ServerError: if it will not.
    """
    left = max(deadline - time.monotonic(), 0.0)
    # A call may exceed its deadline by a tenth of a second.
    if seconds > max(left, 0.1):
        raise ServerError(
            f"{left:.1f} s of the timeout are left, but {work} may take {seconds:.1f} s. Use a longer "
            "timeout or a smaller batch; gRPC is faster than REST."
        )


def ask(
    attempt: Callable[[float], T], server: str, timeout: float, attempts: int | None = None
) -> T:
    """Returns the result of `attempt`; repeats it, after growing pauses, while it raises `NotNow`.

    Args:
        attempt: takes the deadline, a time of time.monotonic(), and ends by then.
        server: name of the server in messages.
        timeout: seconds for all attempts and pauses together.
        attempts: largest number of attempts; None: as many as the time allows.

    Raises:
        ServerError: if there is no answer by then; the message has the last two different problems.
    """
    started = time.monotonic()
    deadline = started + timeout
    pause = _FIRST_PAUSE_SECONDS
    problems: list[NotNow] = []
    for number in itertools.count(1):
        try:
            return attempt(deadline)
        except NotNow as found:
            if not problems or problems[-1].problem != found.problem:
                problems = [*problems[-1:], found]
        left = deadline - time.monotonic()
        if number == attempts or left < _SHORTEST_ATTEMPT_SECONDS:
            break
        # Random pauses, so that clients that lost the same server do not all return at once; the
        # last pause leaves time for another attempt.
        time.sleep(min(pause * random.uniform(0.5, 1.0), left / 2))
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    last = problems[-1]
    before = f" Before that: {problems[0].problem}." if len(problems) > 1 else ""
    raise ServerError(
        f"No answer from the {server} after {number} attempt{'s' * (number > 1)} in "
        f"{time.monotonic() - started:.1f} of {timeout:g} s: {last.problem.rstrip('.')}.{before} "
        f"{problems[0].advice if last.advice == TAKE_LONGER else last.advice}"
    ) from last
