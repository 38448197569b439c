"""Decisions that all workers must share, which the chief makes."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfdeq.training.devices.strategies import is_chief, several_workers


class Agreement:
    """Sends the chief's values to all workers. With a single worker there is nothing to send.

    Args:
        strategy: strategy of the run.

    Attributes:
        alone: whether this is the only worker. is_chief: whether this one decides.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self.alone = not several_workers(strategy)
        self.is_chief = is_chief(strategy)
        self._strategy = strategy
        self._told = tf.function(self._tell, autograph=False)

    def on(self, value: float) -> float:
        """Returns the chief's value; all workers call it at the same moment."""
        if self.alone:
            return value
        told = self._told(tf.constant(value, tf.float64))
        return float(self._strategy.experimental_local_results(told)[0])

    def check_same(self, config: Mapping[str, Any]) -> None:
        """Refuses a worker whose configuration differs from the chief's; all call it at the same moment.

        Raises:
            ValueError: in a worker that is not the chief.
        """
        text = json.dumps(dict(config), sort_keys=True)
        # 32 bits, which float64 represents exactly.
        own = float(zlib.crc32(text.encode()))
        if self.on(own) != own:
            raise ValueError(
                "This worker's flags or data are not those of the first worker. Give every worker the same "
                f"command, and the same data; received {text}."
            )

    def _tell(self, value: tf.Tensor) -> Any:
        def on_replica(value):
            context = tf.distribute.get_replica_context()
            first = tf.equal(context.replica_id_in_sync_group, 0)  # the chief's replica
            # An operation on the replica's device, because a reduction uses the device of its
            # input.
            share = tf.where(first, value, tf.zeros_like(value))
            return context.all_reduce(tf.distribute.ReduceOp.SUM, share)

        return self._strategy.run(on_replica, args=(value,))
