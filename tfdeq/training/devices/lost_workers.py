"""Handling of errors that occur when another worker of the run no longer answers."""

import contextlib
import re
from collections.abc import Iterator

import tensorflow as tf

from tfdeq.programs.preemption import Preempted

# The errors with which an operation between workers may end when one of them is gone.
_KINDS = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.UnknownError,
)
# Only the messages show that a worker is gone: defects raise the same errors, and would do so
# again.
_GONE = re.compile(
    r"collective ops is aborted|socket closed|broken pipe|connection (?:reset|refused|closed|timed out)"
    r"|failed to connect|connection attempt|heartbeat|unhealthy|coordination service"
    r"|disconnected|task.* (?:restarted|died|lost|unavailable)",
    re.IGNORECASE,
)


@contextlib.contextmanager
def other_worker_lost(several_workers: bool) -> Iterator[None]:
    """A context that turns TensorFlow's errors about a lost worker into `Preempted`.

    Errors that do not mention another worker are raised unchanged, because they would occur again after
    a restart.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if not (several_workers and _is_lost(error)):
            raise
        print(
            "Another worker no longer responds. Start all workers again; they resume from the last "
            f"checkpoint. TensorFlow says: {_reason(error)}",
            flush=True,
        )
        raise Preempted from error


def _is_lost(error: tf.errors.OpError) -> bool:
    if isinstance(error, tf.errors.UnavailableError):
        return True
    return isinstance(error, _KINDS) and _GONE.search(str(error)) is not None


def _reason(error: Exception) -> str:
    """Returns the first line of an error that says what was lost, or else its first non-empty line."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(_SAYS_NOTHING)]
    said = [*filter(_GONE.search, said), *said, "no reason"]
    return f"{type(error).__name__}: {said[0]}"


_SAYS_NOTHING = ("Graph execution error", "Detected at node", 'File "')
