"""Dense layers whose kernel is normalised, chosen by name."""

import keras
from keras import ops

from tfdeq.solvers.solver import require_positive_integer
from tfdeq.spectral_norm import SpectralNorm

_TINY = 1e-12


@keras.saving.register_keras_serializable(package="tfdeq")
class WeightNormalizedDense(keras.layers.Layer):
    """x W + b with W's columns w_j = g_j v_j / ‖v_j‖: length and direction are learned apart.

    g starts as ‖v‖, so that the layer starts like `keras.layers.Dense` with the same initializer.
    Nothing is assigned in a call: inside a solve W is the same in every application, and the
    gradient passes through the normalisation.

    Args:
        units: outputs.
        use_bias: whether there is b, which starts at zero. Default True.
        kernel_initializer: of W; zeros give v random directions, and g = 0. Default
            "glorot_uniform", as in `keras.layers.Dense`.

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
        # A zero matrix has no directions: random ones, of length zero, can be learned from.
        zero = isinstance(self.kernel_initializer, keras.initializers.Zeros)
        self.direction = self.add_weight(
            name="direction",
            shape=shape,
            initializer="glorot_uniform" if zero else self.kernel_initializer,
        )
        # The initializer gives the same values again: a variable cannot be read while it is made.
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

    @property
    def kernel(self):
        """W [inputs, units]."""
        direction = ops.convert_to_tensor(self.direction)
        return direction * (ops.convert_to_tensor(self.gain) / (_lengths(direction) + _TINY))

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
    """[inputs, units] -> [1, units], the columns' norms."""
    return ops.sqrt(ops.sum(ops.square(kernel), axis=0, keepdims=True))


def normalized_dense(units: int, normalization: str | None, **settings) -> keras.layers.Layer:
    """Returns a Dense layer of the normalisation that is named.

    Args:
        units: outputs.
        normalization: None: none. "weight": `WeightNormalizedDense`. "spectral": the kernel's
            spectral norm is kept at 1 at most (`tfdeq.SpectralNorm`, a Keras constraint).
        settings: use_bias, kernel_initializer, dtype, name, as of `keras.layers.Dense`.

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
