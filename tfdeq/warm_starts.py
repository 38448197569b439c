"""Warm starts: the next solve of an example starts from its last equilibrium."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfdeq.numerics.state_layout import StateLayout
from tfdeq.rows import rows_of, with_rows
from tfdeq.solution import Solution, Status


class WarmStarts(tf.Module):
    """Stores the last state of each example, under a key that the caller chooses.

    Use it for frames of a video, a control loop, a decoder, or the same training example an epoch
    later: if x has changed only a little, so has z*, and a solve that starts at the old z* needs
    fewer steps. The layer itself stores nothing: the states are in this object, under the caller's
    keys, as long as the caller keeps it. This works in eager mode and in tf.function, but not under
    XLA, which has no hash tables. As a `tf.Module` it can be part of a tf.train.Checkpoint.

    Args:
        like: nest of tensors or specs [B, ...] like the state, for example
            `layer.initial_state(x)`; all dimensions but the first must be known.
        key_dtype: tf.int64 or tf.string. Default tf.int64.

    Raises:
        TypeError: for a state that is not floating point, or another key_dtype.
        ValueError: for a state of unknown shape.
        tf.errors.InvalidArgumentError: in a call, if the number of keys differs from the state's
            number of rows.

    Source: Bai, Geng, Savani, Kolter, Deep Equilibrium Optical Flow Estimation, arXiv:2204.08442
        (fixed-point reuse).

    Example:
        >>> layer = DEQLayer(tfdeq.cells.DenseCell(3))
        >>> x = tf.ones([2, 3])
        >>> warm_starts = WarmStarts(layer.initial_state(x))
        >>> for frame in (x, 1.001 * x):
        ...     z0 = warm_starts.get([7, 8], layer.initial_state(frame))
        ...     solution = layer(frame, z0=z0, return_solution=True)
        ...     warm_starts.put([7, 8], solution)
        >>> int(solution.steps[0]) <= 3
        True
    """

    def __init__(self, like: Any, key_dtype: tf.DType = tf.int64):
        super().__init__()
        if key_dtype not in (tf.int64, tf.string):
            raise TypeError(f"key_dtype must be tf.int64 or tf.string; received {key_dtype!r}.")
        self._key_dtype = key_dtype
        example = tf.nest.map_structure(_one_row, like)
        self._example = example
        self._layout = StateLayout(example, any_batch=True)
        size = int(self._layout.flatten(example).shape[1])
        # The last column tells whether a state is stored: 1 for a stored state, 0 for the default.
        self._table = tf.lookup.experimental.MutableHashTable(
            key_dtype, self._layout.dtype, tf.zeros([size + 1], self._layout.dtype)
        )

    def get(self, keys: Any, default: Any) -> Any:
        """Returns the states last stored under the keys; for new keys, the rows of the default.

        Args:
            keys: [B]. default: nest [B, ...] like the state.
        """
        default = self._as_state(default)
        rows = rows_of(tf.nest.flatten(default)[0])
        keys = with_rows("keys", self._as_keys(keys), rows, shared=False)
        found = self._table.lookup(keys)
        flat = self._layout.flatten(default)
        found.set_shape([None, flat.shape[1] + 1])
        return self._layout.unflatten(tf.where(found[:, -1:] > 0, found[:, :-1], flat))

    def put(self, keys: Any, solution: Solution) -> None:
        """Stores the states of a `Solution` under the keys, except samples that are NON_FINITE.

        If a key occurs twice, the last of its states is kept.

        Args:
            keys: [B]. solution: of the layer or of `tfdeq.fixed_point`.
        """
        flat = tf.stop_gradient(self._layout.flatten(self._as_state(solution.z)))
        keys = with_rows("keys", self._as_keys(keys), rows_of(flat), shared=False)
        usable = tf.reduce_all(tf.math.is_finite(flat), axis=1)
        usable &= tf.not_equal(solution.status, int(Status.NON_FINITE))
        values = tf.concat([flat, tf.ones_like(flat[:, :1])], axis=1)
        self._table.insert(tf.boolean_mask(keys, usable), tf.boolean_mask(values, usable))

    def forget(self, keys: Any) -> None:
        """Removes the states under the keys [B]; keys without a state are ignored."""
        self._table.remove(self._as_keys(keys))

    def size(self) -> tf.Tensor:
        """Returns the number of keys that hold a state, a scalar int64."""
        return self._table.size()

    def _as_state(self, z: Any) -> Any:
        """Checks z, and casts a state that the layer returned in half precision to the solver's dtype."""
        try:
            tf.nest.assert_same_structure(z, self._example)
            fits = all(
                leaf.shape[1:].is_compatible_with(expected.shape[1:])
                for leaf, expected in zip(
                    tf.nest.flatten(z), tf.nest.flatten(self._example), strict=True
                )
            )
        except (TypeError, ValueError):
            fits = False
        if not fits:
            shapes = tf.nest.map_structure(lambda leaf: ["B", *leaf.shape[1:]], self._example)
            raise ValueError(
                f"The state must be of shapes {shapes}, as `like` was; received {z!r}."
            )
        return tf.nest.map_structure(lambda leaf, e: tf.cast(leaf, e.dtype), z, self._example)

    def _as_keys(self, keys: Any) -> tf.Tensor:
        if not tf.is_tensor(keys):
            keys = tf.constant(np.asarray(keys).tolist(), self._key_dtype)
        if keys.dtype.is_integer and self._key_dtype == tf.int64:
            keys = tf.cast(keys, tf.int64)
        if keys.dtype != self._key_dtype or keys.shape.rank not in (1, None):
            raise ValueError(
                f"keys must be of shape [B] and {self._key_dtype.name}, one for each example; "
                f"received shape {keys.shape}, {keys.dtype.name}."
            )
        return keys


def _one_row(leaf: Any) -> tf.Tensor:
    shape = tf.TensorShape(leaf.shape)
    if shape.rank in (None, 0) or not shape[1:].is_fully_defined():
        raise ValueError(
            "like must have shapes [B, ...] whose dimensions after the first are known; received "
            f"{shape}."
        )
    return tf.zeros([1, *shape[1:]], leaf.dtype)
