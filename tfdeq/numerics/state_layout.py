"""The layout of a solve's state, a nest of tensors, in one matrix [B, D]."""

from typing import Any

import tensorflow as tf
from ml_dtypes import finfo  # numpy's finfo does not know bfloat16


class StateLayout:
    """The layout of a nest of [B, ...] tensors in one [B, D] matrix of the solver's dtype.

    The matrix is float64 if any leaf is, else float32: the solver never works in half precision.

    Args:
        z: the nest. any_batch: whether matrices with another number of rows will be unflattened.

    Raises:
        TypeError: for a leaf that is not floating point.
        ValueError: for a leaf without a batch dimension, or an empty nest.
    """

    def __init__(self, z: Any, any_batch: bool = False):
        leaves = [tf.convert_to_tensor(leaf) for leaf in tf.nest.flatten(z)]
        if not leaves:
            raise ValueError(f"z0 must hold at least one tensor; received {z!r}.")
        for leaf in leaves:
            if not leaf.dtype.is_floating:
                raise TypeError(f"z0 must be of a floating dtype; received {leaf.dtype.name}.")
            if leaf.shape.rank == 0:
                raise ValueError(
                    "z0 must have the batch in dimension 0: [B, ...]; received a scalar. "
                    "Add a dimension of size 1 for a single sample."
                )
        self._structure = z
        self._dtypes = [leaf.dtype for leaf in leaves]
        self._static_shapes = [
            tf.TensorShape([None, *leaf.shape[1:]]) if any_batch else leaf.shape for leaf in leaves
        ]
        self._tails = [_tail_shape(leaf) for leaf in leaves]
        self._sizes = [_product(tail) for tail in self._tails]
        wide = any(dtype == tf.float64 for dtype in self._dtypes)
        self.dtype = tf.float64 if wide else tf.float32

    def flatten(self, z: Any) -> tf.Tensor:
        """Nest of [B, ...] -> [B, D]."""
        leaves = [tf.convert_to_tensor(leaf) for leaf in tf.nest.flatten(z)]
        parts = [
            tf.reshape(tf.cast(leaf, self.dtype), tf.stack([tf.shape(leaf)[0], size]))
            for leaf, size in zip(leaves, self._sizes, strict=True)
        ]
        matrix = parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)
        known = all(isinstance(size, int) for size in self._sizes)
        matrix.set_shape([leaves[0].shape[0], sum(self._sizes) if known else None])
        return matrix

    def unflatten(self, matrix: tf.Tensor) -> Any:
        """[B, D] -> nest of [B, ...] in the original dtypes."""
        parts = [matrix] if len(self._sizes) == 1 else tf.split(matrix, self._sizes, axis=1)
        leaves = []
        for part, tail, dtype, shape in zip(
            parts, self._tails, self._dtypes, self._static_shapes, strict=True
        ):
            leaf = tf.reshape(part, tf.concat([tf.shape(matrix)[:1], tail], axis=0))
            leaf.set_shape(shape)
            leaves.append(tf.cast(leaf, dtype))
        return tf.nest.pack_sequence_as(self._structure, leaves)

    def rounded(self, matrix: tf.Tensor) -> tf.Tensor:
        """[B, D] as f sees it: half-precision leaves round their part of the matrix."""
        if all(dtype.size >= 4 for dtype in self._dtypes):
            return matrix
        rounded = self.flatten(self.unflatten(matrix))
        rounded.set_shape(matrix.shape)
        return rounded

    @property
    def epsilon(self) -> float:
        """The relative spacing of the numbers of the coarsest leaf."""
        return max(float(finfo(dtype.as_numpy_dtype).eps) for dtype in self._dtypes)

    def check_output(self, output: Any) -> None:
        """Raises a ValueError unless f's output has z's structure, shapes and dtypes."""
        expected = [
            f"{shape} {dtype.name}"
            for shape, dtype in zip(self._static_shapes, self._dtypes, strict=True)
        ]
        try:
            tf.nest.assert_same_structure(self._structure, output)
            leaves = [tf.convert_to_tensor(leaf) for leaf in tf.nest.flatten(output)]
            received = [f"{leaf.shape} {leaf.dtype.name}" for leaf in leaves]
            fits = all(
                leaf.shape.is_compatible_with(shape) and leaf.dtype == dtype
                for leaf, shape, dtype in zip(
                    leaves, self._static_shapes, self._dtypes, strict=True
                )
            )
        except (TypeError, ValueError):
            fits, received = False, [repr(output)]
        if not fits:
            raise ValueError(
                "f(z, *args) must return the structure, shapes and dtypes of z. "
                f"z: {', '.join(expected)}; f returned: {', '.join(received)}. "
                "Change f's last operation, or start from a z0 like f's output."
            )


def _tail_shape(leaf: tf.Tensor) -> list[int] | tf.Tensor:
    """Returns the shape after the batch dimension, static where it is known."""
    tail = leaf.shape[1:]
    return tail.as_list() if tail.is_fully_defined() else tf.shape(leaf)[1:]


def _product(tail: list[int] | tf.Tensor) -> int | tf.Tensor:
    if isinstance(tail, tf.Tensor):
        return tf.reduce_prod(tail)
    size = 1
    for extent in tail:
        size *= extent
    return size
