"""Joins requests inside a version's graph, so that the server need not batch them.

A server that joins requests before the model sees them cannot check them: a request with another dtype
or rank makes its neighbours fail, or ends the server. Here each request is first checked alone
(request_checks.py), and only requests that pass wait for others, in TensorFlow's BatchFunction op.
"""

import uuid
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

SIZES = (1, 2, 4, 8, 16, 32)
THREADS = 2
TIMEOUT_MICROS = 2000
# Largest number of waiting batches; further requests get UNAVAILABLE, and clients retry.
_MOST_WAITING = 1000
# The op's own limit on the rows of a request; the version's limit is checked before.
_MOST_ROWS = 2**30

_Function = tf.types.experimental.ConcreteFunction


class Batching(NamedTuple):
    """Settings for joining requests in a version.

    A batch runs when a thread is free and either the batch is full or its oldest request has waited for
    the timeout.
    """

    sizes: Sequence[int] = SIZES  # ascending; a smaller batch is padded with copies of a row
    threads: int = THREADS  # number of batches that run at the same time
    timeout_micros: int = TIMEOUT_MICROS  # how long an incomplete batch waits for more requests


class Queues:
    """The queues of one version: one scheduler with its threads, a queue for each shape of request."""

    def __init__(self, batching: Batching):
        self.batching = batching
        # Unique, because in one process equal names would join requests of different versions.
        self._name = f"tfdeq_{uuid.uuid4().hex}"

    def join(self, function: _Function, inputs: Sequence[tf.Tensor], queue: str) -> list[tf.Tensor]:
        """Runs a function on a batch of requests, and returns the rows of this request.

        Args:
            function: takes tensors [rows, …] in this order; returns a list of tensors [rows, …].
            inputs: tensors; in each queue their shapes are equal except for the rows.
            queue: name of the queue; requests in the same queue are joined.
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
