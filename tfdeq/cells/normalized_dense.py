"""Dense layers whose kernel is normalised, chosen by name."""

import keras
from keras import ops

from tfdeq.solvers.solver import require_positive_integer
from tfdeq.spectral_norm import SpectralNorm


@keras.saving.register_keras_serializable(package="tfdeq")
class WeightNormalizedDense(keras.layers.Layer):
    """x W + b with columns w_j = g_j v_j / ‖v_j‖ of W: lengths and directions are learned separately.

    g starts as ‖v‖, so that the layer starts like `keras.layers.Dense` with the same initializer.
    A call assigns no variables, so inside a solve W is the same in every application. The
    gradient passes through the normalisation, which is computed in at least float32. A column of
    zeros has no direction; for it w_j = g_j v_j, so W and its gradient stay finite.

    Args:
        units: outputs.
        use_bias: whether there is b, which starts at zero. Default True.
        kernel_initializer: initializer of W; columns of zeros get random directions v and g = 0, so
            that they can be trained. Default "glorot_uniform", as in `keras.layers.Dense`.

    Source: Salimans and Kingma, Weight Normalization, arXiv:1602.07868, equation (2).

    Example:
        >>> WeightNormalizedDense(4)(keras.ops.ones([2, 3])).shape
        TensorShape([2, 4])
    """

    def __init__(
        self,
        units: int,
        use_bias: bool = True,
        kernel_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        require_positive_integer("units", units)
        self.units = units
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        shape = (input_shape[-1], self.units)
        # A zero matrix has no directions; random directions with length zero can be trained.
        zero = isinstance(self.kernel_initializer, keras.initializers.Zeros)
        self.direction = self.add_weight(
            name="direction",
            shape=shape,
            initializer="glorot_uniform" if zero else self._directions,
        )
        # Calls the initializer again, which gives the same values: a variable cannot be read while
        # it is created.
        self.gain = self.add_weight(
            name="gain",
            shape=(self.units,),
            initializer=lambda _, dtype: _lengths(self.kernel_initializer(shape, dtype=dtype))[0],
        )
        self.bias = (
            self.add_weight(name="bias", shape=(self.units,), initializer="zeros")
            if self.use_bias
            else None
        )

    def _directions(self, shape, dtype):
        """Returns the initializer's matrix, with random columns in place of columns of zeros."""
        kernel = self.kernel_initializer(shape, dtype=dtype)
        # A separate seed, so that the model's random numbers do not depend on whether there are
        # zeros.
        other = keras.initializers.GlorotUniform(seed=0)(shape, dtype=dtype)
        return ops.where(_lengths(kernel) == 0, other, kernel)

    @property
    def kernel(self):
        """W [inputs, units]."""
        direction = ops.convert_to_tensor(self.direction)
        dtype = direction.dtype
        direction, _ = _scaled(direction)
        length = _lengths(direction)
        unit = direction / ops.where(length == 0, 1, length)
        return ops.cast(unit * ops.cast(ops.convert_to_tensor(self.gain), unit.dtype), dtype)

    def call(self, x):
        product = ops.matmul(x, self.kernel)
        return product if self.bias is None else product + self.bias

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _lengths(kernel):
    """Returns the columns' norms, [inputs, units] -> [1, units], in at least float32."""
    kernel, largest = _scaled(kernel)
    squares = ops.sum(ops.square(kernel), axis=0, keepdims=True)
    zero = squares == 0  # where the square root has no finite gradient
    return largest * ops.where(zero, 0, ops.sqrt(ops.where(zero, 1, squares)))


def _scaled(kernel):
    """Returns columns with largest entry 1, whose squares cannot overflow or underflow, and their
    divisors. The divisors count as constants for the gradient, because lengths are homogeneous."""
    if keras.backend.standardize_dtype(kernel.dtype) in ("float16", "bfloat16"):
        kernel = ops.cast(kernel, "float32")
    largest = ops.stop_gradient(ops.max(ops.abs(kernel), axis=0, keepdims=True))
    largest = ops.where(largest == 0, 1, largest)
    return kernel / largest, largest


def normalized_dense(units: int, normalization: str | None, **settings) -> keras.layers.Layer:
    """Returns a Dense layer with the given normalisation.

    Args:
        units: outputs.
        normalization: None: none. "weight": `WeightNormalizedDense`. "spectral": the kernel's spectral
            norm is kept at or below 1 (`tfdeq.SpectralNorm`, a Keras constraint).
        settings: use_bias, kernel_initializer, dtype, name, as for `keras.layers.Dense`.

    Raises:
        ValueError: for another name.
    """
    if normalization is None:
        return keras.layers.Dense(units, **settings)
    if normalization == "weight":
        return WeightNormalizedDense(units, **settings)
    if normalization == "spectral":
        return keras.layers.Dense(units, kernel_constraint=SpectralNorm(1.0), **settings)
    raise ValueError(
        f"normalization must be None, 'weight' or 'spectral'; received {normalization!r}."
    )
