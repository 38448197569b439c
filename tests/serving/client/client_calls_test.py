"""When a call retries, when it ends, and its error messages."""

import time

import pytest

from tfdeq.serving.client import client_calls
from tfdeq.serving.client.client_calls import NotNow, ServerError, ask, require_time


def test_it_asks_again_until_there_is_an_answer():
    answers = [NotNow("full", "wait"), NotNow("full", "wait"), 7]

    def attempt(deadline):
        assert deadline > time.monotonic()
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert ask(attempt, "server", 5.0) == 7


def test_it_asks_as_long_as_the_time_allows():
    asked = []

    def attempt(deadline):
        asked.append(deadline - time.monotonic())
        raise NotNow("no connection.", "See whether it runs.")

    started = time.monotonic()
    with pytest.raises(ServerError) as raised:
        ask(attempt, "server", 1.0)
    taken = time.monotonic() - started
    assert 0.95 < taken < 1.1
    # The last attempt is close to the end, and there are not too many.
    assert asked[-1] < 0.1
    assert 5 < len(asked) < 20
    text = str(raised.value)
    assert f"after {len(asked)} attempts in 1.0 of 1 s: no connection. See whether it runs." in text


def test_it_ends_after_the_attempts():
    asked = []

    def attempt(deadline):
        asked.append(deadline)
        raise NotNow("full", "wait")

    with pytest.raises(ServerError, match="after 1 attempt in"):
        ask(attempt, "server", 5.0, attempts=1)
    with pytest.raises(ServerError, match="after 3 attempts in"):
        ask(attempt, "server", 5.0, attempts=3)
    assert len(asked) == 4
    assert asked[1] == asked[2] == asked[3]


def test_what_happened_before_the_time_ran_out_is_said():
    problems = [NotNow("HTTP 503", "Start it."), client_calls.out_of_time("waiting")]

    def attempt(deadline):
        raise problems.pop(0)

    with pytest.raises(ServerError, match="the time ran out.*Before that: HTTP 503. Start it."):
        ask(attempt, "server", 5.0, attempts=2)


def test_other_errors_pass():
    def attempt(deadline):
        raise ServerError("refused")

    with pytest.raises(ServerError, match="^refused$"):
        ask(attempt, "server", 5.0)


def test_work_that_nothing_can_interrupt():
    now = time.monotonic()
    require_time(1.0, now + 2.0, "reading")
    require_time(0.05, now, "reading")
    with pytest.raises(ServerError, match="reading may take 3.0 s. Use a longer timeout"):
        require_time(3.0, now + 2.0, "reading")
