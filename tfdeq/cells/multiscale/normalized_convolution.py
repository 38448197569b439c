"""A convolution of images with weight normalisation."""

import keras
from keras import ops

from tfdeq.cells.normalized_dense import WeightNormalizedDense
from tfdeq.solvers.solver import require_positive_integer


@keras.saving.register_keras_serializable(package="tfdeq")
class NormalizedConvolution(keras.layers.Layer):
    """A convolution without bias whose filters are g_j v_j / ‖v_j‖: lengths and directions apart.

    g starts as ‖v‖. A call assigns no variable, so the filters are the same in every application of a
    solve. Places beyond the border are zeros.

    Args:
        filters: C, channels of the output.
        kernel_size: k, rows and columns of a filter.

    Call arguments: x [B, H, W, n]. Returns [B, H, W, C].

    Source: Salimans and Kingma, Weight Normalization, arXiv:1602.07868, equation (2).

    Example:
        >>> NormalizedConvolution(4, 3)(keras.ops.ones([1, 5, 5, 2])).shape
        TensorShape([1, 5, 5, 4])
    """

    def __init__(self, filters: int, kernel_size: int, **kwargs):
        super().__init__(**kwargs)
        require_positive_integer("kernel_size", kernel_size)
        self.filters = filters
        self.kernel_size = kernel_size
        # A filter is a column of a matrix.
        self.columns = WeightNormalizedDense(
            filters, use_bias=False, dtype=self.dtype_policy, name="columns"
        )

    def build(self, shape):
        self.columns.build((None, self.kernel_size**2 * shape[-1]))
        self.built = True

    def call(self, x):
        size = (self.kernel_size, self.kernel_size, x.shape[-1], self.filters)
        kernel = ops.cast(ops.reshape(self.columns.kernel, size), x.dtype)
        return ops.conv(x, kernel, padding="same")

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
        }
