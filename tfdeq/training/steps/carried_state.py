"""The state that a batch of segments passes on to the next one, for all replicas."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf


class CarriedState:
    """Keeps the carried state of every row of a batch between training steps.

    Each replica has the state of all rows and uses that of its own rows. So a checkpoint stores it
    once, independent of the devices.

    Args:
        initial: (rows) -> a nest of tensors [rows, …], the state at the beginning; None: no state is
            passed on.
        batch_size: number of rows in a batch, over all replicas.
        strategy: the strategy in whose scope this is called.
    """

    def __init__(
        self,
        initial: Callable[[int], Any] | None,
        batch_size: int,
        strategy: tf.distribute.Strategy,
    ):
        self._replicas = strategy.num_replicas_in_sync
        self._rows = batch_size // self._replicas
        self._kept = tf.nest.map_structure(
            lambda leaf: tf.Variable(leaf, trainable=False, name="memory"),
            () if initial is None else initial(batch_size),
        )

    @property
    def variables(self) -> list[tf.Variable]:
        """The variables for a checkpoint."""
        return tf.nest.flatten(self._kept)

    def rows(self) -> Any:
        """On a replica: returns the state of its rows."""

        def own(variable):
            if self._replicas == 1:
                return tf.convert_to_tensor(variable)
            first = _replica().replica_id_in_sync_group * self._rows
            rows = variable[first : first + self._rows]
            return tf.ensure_shape(rows, [self._rows, *variable.shape[1:]])

        return tf.nest.map_structure(own, self._kept)

    def gathered(self, carried: Any) -> Any:
        """On a replica: returns the state of its rows and of the other replicas' rows."""
        leaves = tf.nest.flatten(carried)
        if self._replicas == 1 or not leaves:
            return carried

        def placed(own):
            # With zeros for the others' rows, so that the sum is the whole state.
            place = [[_replica().replica_id_in_sync_group]]
            every = tf.zeros([self._replicas, *own.shape], own.dtype)
            every = tf.tensor_scatter_nd_update(every, place, own[None])
            return tf.reshape(every, [-1, *own.shape[1:]])

        whole = {}
        # By dtype, because integers are reduced on the host, separately from those reduced on
        # devices.
        for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
            places = [index for index, leaf in enumerate(leaves) if leaf.dtype == dtype]
            parts = [placed(leaves[index]) for index in places]
            sums = _replica().all_reduce(tf.distribute.ReduceOp.SUM, parts)
            whole.update(zip(places, sums, strict=True))
        return tf.nest.pack_sequence_as(carried, [whole[index] for index in range(len(leaves))])

    def keep(self, carried: Any, where: tf.Tensor, local: Callable[[Any], tf.Tensor]) -> None:
        """Over all replicas: stores a gathered state if the scalar `where` is true.

        Args:
            local: returns one replica's part of a value that is the same on all.
        """
        for variable, new in zip(self.variables, tf.nest.flatten(carried), strict=True):
            variable.assign(tf.where(where, local(new), variable))


def _replica() -> tf.distribute.ReplicaContext:
    return tf.distribute.get_replica_context()
