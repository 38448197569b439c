"""The base class of the baselines, for texts in segments with padding after them."""

import keras
from keras import ops

from tfdeq.cells.normalized_dense import normalized_dense
from tfdeq.solvers.solver import require_positive_integer


class SegmentLayer(keras.layers.Layer):
    """(y, m') = layer(x, m): a causal layer, whose memory m holds all that y needs of the text before x.

    A text in segments, each with the carried memory that the previous call returned, has the same
    outputs as in one piece. This is the base class of the baselines. They define their memory
    (`_memory_spec`) and the computation for a segment (`_advance`).

    Args:
        width: d, features of the output.
        layers: depth, as the subclass defines it.
        dropout: rate, in [0, 1]; one mask per sample, the same at all positions of a call.

    Call arguments:
        x: [B, T, n].
        memory: None, or what `initial_memory` or an earlier call with the same n returned.
        mask: [B, T] bool or None, False at padding, which must follow the text. A segment that is
            continued by another one must not have padding. Keras passes a mask from layer to layer only
            without a memory; with a memory, pass the mask yourself.

    Returns:
        [B, T, d], zero where the mask is False; with a memory, also that of the next segment, without a
        gradient.

    Raises:
        ValueError: for sizes below 1; at build for an input that is not [B, T, n]; in the call for the
            carried memory of another layer.

    Source: segments without gradients between them: Dai et al., Transformer-XL, arXiv:1901.02860,
        section 3.2; one dropout mask: Gal, Ghahramani, arXiv:1512.05287.

    Example:
        >>> from tfdeq.baselines import Recurrent
        >>> layer = Recurrent(width=8)
        >>> memory = layer.initial_memory(2)
        >>> for segment in keras.ops.split(keras.ops.ones([2, 6, 3]), 2, axis=1):
        ...     y, memory = layer(segment, memory)
        >>> y.shape
        TensorShape([2, 3, 8])
    """

    def __init__(self, width: int, layers: int, dropout: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.width = width
        # Not self.layers, which Keras would take for a list of layers.
        self.depth = layers
        require_positive_integer("width", width)
        require_positive_integer("layers", layers)
        self.dropout = float(dropout)
        self.features = None  # n, once built

    def initial_memory(self, batch_size):
        """Returns the carried memory at the beginning of a text: zeros.

        Args:
            batch_size: B, an integer or a scalar tensor.

        Returns:
            A nest of tensors [B, …].

        Raises:
            ValueError: if the memory holds inputs and the layer is not built, so that n is unknown.
        """
        return keras.tree.map_structure(
            lambda place: ops.zeros((batch_size, *place.shape[1:]), place.dtype),
            self._memory_spec(),
        )

    def build(self, x_shape):
        if len(x_shape) != 3 or x_shape[-1] is None:
            raise ValueError(
                "x must be [batch, positions, features], with a known number of features; received "
                f"shape {tuple(x_shape)}."
            )
        self.features = x_shape[-1]

    def call(self, x, memory=None, training=None, mask=None):
        if mask is not None:
            # Padding may contain NaN, and zero times NaN would reach the gradients.
            x = ops.where(mask[:, :, None], x, 0)
        before = None if memory is None else self._checked(memory)
        output, after = self._advance(x, before, training)
        if mask is not None:
            output = ops.where(mask[:, :, None], output, 0)
        if memory is None:
            return output
        return output, keras.tree.map_structure(ops.stop_gradient, after)

    def _memory_spec(self):
        """The carried memory as a nest of KerasTensors with an unknown batch size."""
        raise NotImplementedError(f"{type(self).__name__} must define _memory_spec().")

    def _advance(self, x, memory, training):
        """Returns the output [B, T, d] and the next memory, which is ignored if memory is None."""
        raise NotImplementedError(f"{type(self).__name__} must define _advance().")

    def _known_features(self) -> int:
        if self.features is None:
            raise ValueError(
                f"The memory of {self.name} holds inputs, and their size is not known yet. Build the "
                "layer first, by a call or by build((None, None, n))."
            )
        return self.features

    def _place(self, *shape, dtype=None):
        """The spec of one tensor of a carried memory."""
        return keras.KerasTensor((None, *shape), dtype=dtype or self.compute_dtype)

    def _checked(self, memory):
        """Returns the carried memory in the structure and dtypes of its spec."""
        spec = self._memory_spec()
        leaves, places = keras.tree.flatten(memory), keras.tree.flatten(spec)
        received = [tuple(getattr(leaf, "shape", ())) for leaf in leaves]
        expected = [tuple(place.shape) for place in places]
        if [shape[1:] for shape in received] != [shape[1:] for shape in expected]:
            raise ValueError(
                f"memory must be what initial_memory or an earlier call of {self.name} returned, "
                f"tensors of shapes {expected}; received {received}."
            )
        cast = [ops.cast(leaf, place.dtype) for leaf, place in zip(leaves, places, strict=True)]
        return keras.tree.pack_sequence_as(spec, cast)

    def _linear(self, units: int, name: str, **settings) -> keras.layers.Layer:
        return linear(units, dtype=self.dtype_policy, name=name, **settings)

    def _locked_dropout(self, name: str) -> keras.layers.Layer:
        return keras.layers.SpatialDropout1D(self.dropout, dtype=self.dtype_policy, name=name)

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "layers": self.depth,
            "dropout": self.dropout,
        }


def linear(units: int, normalization: str | None = None, use_bias: bool = False, **settings):
    """Returns a linear map whose weights start as N(0, 1 / fan_in) and whose bias starts as zero.

    Args:
        units, normalization, use_bias, settings: see `tfdeq.cells.normalized_dense`.

    Example:
        >>> linear(4)(keras.ops.ones([2, 3])).shape
        TensorShape([2, 4])
    """
    initializer = keras.initializers.VarianceScaling(1.0, "fan_in", "untruncated_normal")
    return normalized_dense(
        units, normalization, use_bias=use_bias, kernel_initializer=initializer, **settings
    )


def causal_windows(joined, kernel_size: int, dilation: int = 1):
    """Returns what a causal convolution sees at each position, to be multiplied by its weights.

    Args:
        joined: [B, (k − 1) D + T, n]: the T positions, preceded by those that the first of them sees.
        kernel_size: k, number of visible positions. dilation: D, the distance between them. Default 1.

    Returns:
        [B, T, k n], from the oldest to the position itself.

    Example:
        >>> causal_windows(keras.ops.ones([2, 4 + 5, 3]), kernel_size=3, dilation=2).shape
        TensorShape([2, 5, 9])
    """
    last = (kernel_size - 1) * dilation
    starts = range(0, last + 1, dilation)
    return ops.concatenate([joined[:, start : start - last or None] for start in starts], axis=-1)
