"""Joins requests inside a version's graph, so that a server needs no batching of its own.

A server that joins requests before the model sees them can check none of them: one of another dtype or
rank fails its neighbours, or ends the server. Here each request runs through its own checks first
(request_checks.py), and only what passed them waits for others, in TensorFlow's BatchFunction op.
"""

import uuid
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

SIZES = (1, 2, 4, 8, 16, 32)
THREADS = 2
TIMEOUT_MICROS = 2000
# Requests that wait, in batches; those beyond are UNAVAILABLE, and clients ask again.
_MOST_WAITING = 1000
# Rows of one request, as far as the op is concerned; the version's limit is checked before.
_MOST_ROWS = 2**30

_Function = tf.types.experimental.ConcreteFunction


class Batching(NamedTuple):
    """How a version joins requests.

    A batch begins when a thread is free and it is full, or its oldest request has waited as long as it may.
    """

    sizes: Sequence[int] = SIZES  # ascending; a smaller batch is filled up with copies of a row
    threads: int = THREADS  # batches that run at once
    timeout_micros: int = TIMEOUT_MICROS  # how long a batch that is not full waits for more


class Queues:
    """The queues of one version: one scheduler with its threads, a queue for each shape of request."""

    def __init__(self, batching: Batching):
        self.batching = batching
        # Unique: within one process, equal names would join requests of different versions.
        self._name = f"tfdeq_{uuid.uuid4().hex}"

    def join(self, function: _Function, inputs: Sequence[tf.Tensor], queue: str) -> list[tf.Tensor]:
        """Runs a function on a batch of requests, and returns the rows of this one.

        Args:
            function: of tensors [rows, …] in this order; returns a list of tensors [rows, …].
            inputs: of one shape in each queue but for the rows.
            queue: its name; requests of one queue are joined.
        """
        sizes = sorted(set(self.batching.sizes))
        return tf.raw_ops.BatchFunction(
            in_tensors=list(inputs),
            captured_tensors=function.captured_inputs,
            f=function,
            num_batch_threads=self.batching.threads,
            max_batch_size=_MOST_ROWS,
            batch_timeout_micros=self.batching.timeout_micros,
            max_enqueued_batches=_MOST_WAITING,
            allowed_batch_sizes=sizes,
            enable_large_batch_splitting=True,
            shared_name=self._name,
            batching_queue=queue,
            Tout=[output.dtype for output in function.outputs],
        )
