"""Settings and choices for each sample of a batch."""

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeq.numerics.fixed_shapes import is_for_litert, shapes_are_fixed


def per_sample(
    name: str,
    value: Any,
    default: Any,
    batch: tf.Tensor,
    dtype: tf.DType,
    zero: bool = False,
) -> tf.Tensor:
    """Returns value, or the default, as [B]; checks as much as is known before the loop runs.

    Args:
        name: name of the setting, for errors.
        value: scalar or [B], may be a tensor; None: the default.
        default: scalar.
        batch: [1] int32, the batch size B.
        dtype: of the result. An integer must be at least 1, a floating number greater than 0.
        zero: whether a floating number may also be 0.
    """
    value = default if value is None else value
    if not tf.is_tensor(value):
        array = np.asarray(value)
        if dtype.is_integer and not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{name} must be of integers; received {value!r}.")
        value = tf.constant(array, dtype)
    tensor = tf.cast(value, dtype)
    known = tf.get_static_value(tensor)
    if known is not None and known.size:
        if dtype.is_integer:
            bound, valid = "at least 1", known >= 1
        elif zero:
            bound, valid = "at least 0", known >= 0
        else:
            bound, valid = "greater than 0", known > 0
        if not valid.all():
            raise ValueError(f"{name} must be {bound} for every sample; received {known}.")
    size = tf.get_static_value(batch)
    fits = tensor.shape.rank in (0, None) or (
        tensor.shape.rank == 1 and (size is None or tensor.shape[0] in (None, size[0]))
    )
    if not fits:
        expected = "[B]" if size is None else f"[{size[0]}]"
        raise ValueError(
            f"{name} must be a scalar or of shape {expected}, one for each sample; received shape "
            f"{tensor.shape}."
        )
    if tensor.shape.rank == 1:
        # A reshape, not a broadcast, so that XLA also refuses another number of rows.
        rows = batch[0] if size is None else int(size[0])
        tensor = tf.reshape(with_rows(name, tensor, rows, shared=False), batch)
    return tf.stop_gradient(tf.broadcast_to(tensor, batch))


def rows_of(leaf: tf.Tensor) -> Any:
    """Returns the number of rows of a leaf [B, ...]: an integer if it is known, else a scalar int32."""
    return tf.shape(leaf)[0] if leaf.shape[0] is None else leaf.shape[0]


def with_rows(name: str, nest: Any, batch: Any, shared: bool = True) -> Any:
    """Returns the nest; raises an error unless its leaves have a row for each sample.

    Args:
        name: name of the nest, for errors.
        nest: nest of tensors [B, ...]. batch: B, an integer if it is known, or a scalar int32.
            shared: whether a leaf with one row may stand for all samples.

    Raises:
        tf.errors.InvalidArgumentError: for another number of rows. If the number is unknown before
            the graph runs, the error is raised when it runs. (XLA omits this check, but knows all
            shapes.)
    """
    size = batch if isinstance(batch, int) else None

    def check(leaf):
        rows = leaf.shape[0] if leaf.shape.rank else None
        if (shared and rows == 1) or (rows is not None and rows == size):
            return leaf
        also = ", or 1 row that all share" if shared else ""
        message = (
            f"{name} must have a row for each sample of the batch{also}. Give as many rows as the "
            "state has"
        )
        if rows is not None and size is not None:
            raise tf.errors.InvalidArgumentError(
                None, None, f"{message}: {size}; received {rows} rows, shape {leaf.shape}."
            )
        if shapes_are_fixed():
            return leaf
        found = tf.shape(leaf)[0]
        fits = tf.equal(found, batch) | (shared & tf.equal(found, 1))
        with tf.control_dependencies([tf.debugging.Assert(fits, [f"{message}:", batch, found])]):
            return tf.identity(leaf)

    return tf.nest.map_structure(check, nest)


def finite_rows(nest: Any, batch: Any) -> tf.Tensor | None:
    """Returns [B] bool, whether all floating leaves of a sample are finite; None if there are no leaves.

    Args:
        nest: nest of tensors [B, ...]; tensors [1, ...], which all samples share, are ignored.
        batch: the batch size B, as `rows_of` returns it.
    """
    found = None
    for leaf in tf.nest.flatten(nest):
        alone = isinstance(batch, int) and batch == 1
        if not leaf.dtype.is_floating or (leaf.shape[0] == 1 and not alone):
            continue
        flat = tf.reshape(leaf, [tf.shape(leaf)[0], -1])
        here = tf.broadcast_to(tf.reduce_all(tf.math.is_finite(flat), axis=1), [batch])
        found = here if found is None else found & here
    return found


def without_rows(nest: Any, kept: tf.Tensor) -> Any:
    """Returns the nest with the rows that are not kept replaced by the first row that is kept.

    If no row is kept, they are replaced by zeros. The replaced rows receive no gradient, unless the
    loss depends on their results.

    Args:
        nest: nest of [B, ...]; tensors [1, ...] and scalars, which all samples share, are not
            changed.
        kept: [B] bool.
    """
    # A sum with a single nonzero row, because a gather would fail if no row is kept.
    before = tf.cumsum(tf.cast(kept, tf.int32), exclusive=True)
    first = kept & tf.equal(before, 0)

    def replace(leaf):
        if leaf.shape.rank == 0 or (leaf.shape[0] == 1 and kept.shape[0] != 1):
            return leaf
        one = tf.where(aligned(first, leaf), leaf, tf.zeros_like(leaf))
        if leaf.dtype == tf.bool:
            other = tf.reduce_any(one, axis=0, keepdims=True)
        else:
            other = tf.reduce_sum(one, axis=0, keepdims=True)
        return tf.where(aligned(kept, leaf), leaf, tf.stop_gradient(other))

    return tf.nest.map_structure(replace, nest)


def power_of_two(values: tf.Tensor) -> tf.Tensor:
    """Returns the power of two at or below each value > 0; 1 for 0, infinity and NaN.

    Products with it are exact. values: [B] float32 or float64. In a trace for LiteRT a logarithm's rounding
    may lead to the next lower power.
    """
    if is_for_litert() and values.dtype == tf.float32:
        return _power_from_table(values)
    # With only its exponent's bits, a number is a power of two.
    integer, unit = (tf.int64, 1 << 52) if values.dtype == tf.float64 else (tf.int32, 1 << 23)
    power = tf.bitcast(tf.bitcast(values, integer) // unit * unit, values.dtype)
    # The inverse of the largest powers is not a normal number.
    power = tf.where(power > 1e37, power / 4, power) if values.dtype == tf.float32 else power
    usable = (power > 0) & tf.math.is_finite(power)
    return tf.where(usable, power, tf.ones_like(power))


def _power_from_table(values: tf.Tensor) -> tf.Tensor:
    # ONNX, whose files are made of LiteRT's, cannot read the bits of a number. float32 has normal numbers
    # from 2^-126 on; the inverse of 2^127 is not one.
    lowest, highest = -126, 125
    table = tf.constant([2.0**exponent for exponent in range(lowest, highest + 1)], values.dtype)
    usable = (values >= 2.0**lowest) & tf.math.is_finite(values)
    values = tf.minimum(tf.where(usable, values, tf.ones_like(values)), 2.0**highest)
    exponents = tf.math.log(values) * (1 / math.log(2)) - lowest
    return tf.gather(table, tf.cast(tf.maximum(exponents, 0.0), tf.int32))


def take_rows(values: Any, indices: tf.Tensor) -> Any:
    """Returns the rows with the given indices, [n] int32.

    Args:
        values: nest of [B, ...]; tensors [1, ...] and scalars, which all samples share, are not
            changed.
    """

    def take(leaf):
        # A leaf with one row belongs to all samples or to the only sample.
        if leaf.shape.rank == 0 or leaf.shape[0] == 1:
            return leaf
        only = tf.equal(tf.shape(leaf)[0], 1)
        return tf.gather(leaf, tf.where(only, tf.zeros_like(indices), indices))

    return tf.nest.map_structure(take, values)


def aligned(values: tf.Tensor, leaf: tf.Tensor) -> tf.Tensor:
    """Returns values [B] as [B, 1, …], with the rank of leaf [B, …]."""
    ones = tf.ones([tf.rank(leaf) - 1], tf.int32)
    return tf.reshape(values, tf.concat([tf.shape(values), ones], axis=0))


def choose(condition: tf.Tensor, one: Any, other: Any) -> Any:
    """Returns sample b of the nest `one` where condition[b] holds, else of `other`.

    Leaves are [B, ...]; scalars, which all samples share, are taken from `one`.
    """

    def choose_leaf(one, other):
        if one.shape.rank == 0:
            return one
        chosen = tf.where(aligned(condition, one), one, other)
        chosen.set_shape(other.shape)
        return chosen

    return tf.nest.map_structure(choose_leaf, one, other)


def scattered(whole: tf.Tensor, indices: tf.Tensor, parts: tf.Tensor) -> tf.Tensor:
    """Returns tf.tensor_scatter_nd_update of parts [n, ...]; the whole if the parts are empty.

    The op itself raises an error for indices [n, k] into a tensor without entries.
    """
    sizes = parts.shape[1:]
    if not sizes.is_fully_defined() or 0 in sizes.as_list():
        some = tf.minimum(tf.size(parts), tf.shape(parts)[0])
        indices, parts = indices[:some], parts[:some]
    return tf.tensor_scatter_nd_update(whole, indices, parts)
