"""Keras's masks around a cell: those that its layers see and those that its equilibrium carries."""

from typing import Any, NamedTuple

import keras
import tensorflow as tf


class CellMasks(NamedTuple):
    """The masks of one call of a cell; each a [B, T] bool tensor, or None."""

    argument: Any = None  # nest like the layer's x, for a cell whose call takes `mask`; or None
    x: tuple = ()  # of the leaves of the injected x
    z: tuple = ()  # of the leaves of the state

    def leaves(self) -> list[tf.Tensor]:
        """Returns the tensors among the masks, each once."""
        return list(_by_identity(self).values())

    def with_leaves(self, leaves: Any) -> "CellMasks":
        """Returns the same masks with other tensors in place of `leaves()`, in order."""
        new = dict(zip(_by_identity(self), leaves, strict=True))
        return keras.tree.map_structure(lambda mask: new.get(id(mask)), self)

    def passed_on(self, mask: Any) -> bool:
        """Whether a mask is that of the cell's argument."""
        own = keras.tree.flatten(self.argument)
        return mask is not None and any(mask is leaf for leaf in own)


def masks_of(nest: Any) -> tuple:
    """Returns the mask that Keras has set on each leaf, or None."""
    return tuple(getattr(leaf, "_keras_mask", None) for leaf in keras.tree.flatten(nest))


def attach_masks(nest: Any, masks: Any) -> Any:
    """Returns the nest with these masks set on its leaves, where Keras's layers look for them.

    A leaf whose mask is None is unchanged. If there is not one mask for each leaf, all are unchanged.
    """
    leaves, masks = keras.tree.flatten(nest), keras.tree.flatten(masks)
    if len(leaves) != len(masks) or all(mask is None for mask in masks):
        return nest
    return keras.tree.pack_sequence_as(nest, list(map(_marked, leaves, masks)))


def without_mask(leaf: tf.Tensor) -> tf.Tensor:
    """Returns the tensor without a mask."""
    return leaf if getattr(leaf, "_keras_mask", None) is None else tf.identity(leaf)


def fits(leaf: Any, mask: Any) -> bool:
    """Whether a mask [B, T] fits a state's leaf [B, T, ...], as far as the shapes are known."""
    shape, rank = tf.TensorShape(leaf.shape), len(mask.shape)
    return (
        shape.rank is not None
        and shape.rank >= rank
        and shape[:rank].is_compatible_with(mask.shape)
    )


def _by_identity(masks: Any) -> dict[int, tf.Tensor]:
    return {id(mask): mask for mask in keras.tree.flatten(masks) if mask is not None}


def _marked(leaf: Any, mask: Any) -> Any:
    if mask is None:
        return leaf
    # A copy, so that the caller's tensor does not change.
    leaf = tf.identity(leaf)
    leaf._keras_mask = mask
    return leaf
