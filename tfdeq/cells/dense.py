"""A dense cell, the smallest cell, whose convergence can be guaranteed."""

import keras
from keras import ops

from tfdeq.cells.normalized_dense import normalized_dense
from tfdeq.solvers.solver import require_positive_integer
from tfdeq.spectral_norm import scaled_to_norm

# |φ(a) − φ(b)| <= |a − b|, so the cell is a contraction if its matrix is.
_NON_EXPANSIVE = ("linear", "tanh", "relu", "sigmoid", "softsign", "softplus", "leaky_relu", "elu")


@keras.saving.register_keras_serializable(package="tfdeq")
class DenseCell(keras.layers.Layer):
    """f(z, x) = φ(z W + x U + b), a recurrent network; the smallest cell.

    A contraction factor γ < 1 guarantees convergence. W is replaced by W min(1, γ / σ) with σ >= ‖W‖₂
    (`tfdeq.spectral_norm_bound`; the bound also holds for W rounded to the compute dtype), and φ is
    non-expansive, so ‖f(z) − f(z')‖ <= γ ‖z − z'‖. Then every x has exactly one equilibrium. Plain
    iteration reaches it from any start, with an error of at most γ^k times the first one after k steps, and
    ‖(I − J)^(−1)‖ <= 1 / (1 − γ) bounds the gradient. The disadvantage is that contractions express fewer
    maps. Attention has no Lipschitz constant, so it cannot have such a factor; `TransformerCell` relies on
    the Jacobian penalty instead.

    x U + b and the bounded W do not depend on z, so `inject` computes them once per solve.

    Args:
        units: size of the state.
        activation: φ, a Keras activation or its name. Default "tanh".
        contraction: γ in (0, 1), or None: W as it is. Default None.
        normalization: of W and U. None, "weight" or "spectral" (W only, if both; see
            `tfdeq.cells.normalized_dense`). Default None.
        recurrent_initializer: of W. Default: orthogonal times 0.5.

    Call arguments: z [B, ..., units]; x from `inject`. Returns [B, ..., units].

    Raises:
        ValueError: for settings out of range; for a contraction with an activation that may expand.

    Source: Bai, Kolter, Koltun, arXiv:1909.01377, section 3; the contraction: Banach's fixed point
        theorem; El Ghaoui, Gu, Travacca, Askari, Tsai, Implicit Deep Learning, arXiv:1908.06315.

    Example:
        >>> from tfdeq import DEQLayer
        >>> layer = DEQLayer(DenseCell(4, contraction=0.9), solver="fixed_point_iteration")
        >>> layer(keras.ops.ones([2, 3])).shape
        TensorShape([2, 4])
    """

    def __init__(
        self,
        units: int,
        activation="tanh",
        contraction: float | None = None,
        normalization: str | None = None,
        recurrent_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        require_positive_integer("units", units)
        self.units = units
        self.activation = keras.activations.get(activation)
        if contraction is not None:
            if not 0.0 < float(contraction) < 1.0:
                raise ValueError(
                    f"contraction must be None or between 0 and 1; received {contraction!r}."
                )
            name = getattr(self.activation, "__name__", None)
            if name not in _NON_EXPANSIVE or self.activation is not keras.activations.get(name):
                raise ValueError(
                    "With a contraction factor, activation must be one that does not expand: "
                    f"{', '.join(_NON_EXPANSIVE)}; received {activation!r}."
                )
        self.contraction = None if contraction is None else float(contraction)
        self.normalization = normalization
        self.recurrent_initializer = keras.initializers.get(
            keras.initializers.Orthogonal(0.5)
            if recurrent_initializer is None
            else recurrent_initializer
        )
        self.recurrent = normalized_dense(
            units,
            normalization,
            use_bias=False,
            kernel_initializer=self.recurrent_initializer,
            dtype=self.dtype_policy,
            name="recurrent",
        )
        self.injection = normalized_dense(
            units,
            "weight" if normalization == "weight" else None,
            dtype=self.dtype_policy,
            name="injection",
        )

    def inject(self, x):
        """Returns the terms of the input x [B, ..., d] that are the same in every application.

        input: x U + b [B, ..., units]. kernel: W [1, units, units], bounded.
        """
        if not self.recurrent.built:
            self.recurrent.build((None, self.units))
        kernel = ops.convert_to_tensor(self.recurrent.kernel)
        if self.contraction is None:
            kernel = ops.cast(kernel, self.compute_dtype)
        else:
            kernel = scaled_to_norm(kernel, self.contraction, self.compute_dtype)
        return {"input": self.injection(x), "kernel": kernel[None]}

    def initial_state(self, x):
        """Returns zeros [B, ..., units]."""
        return ops.zeros((*ops.shape(x)[:-1], self.units), dtype=self.compute_dtype)

    def call(self, z, x):
        return self.activation(ops.matmul(z, x["kernel"][0]) + x["input"])

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "contraction": self.contraction,
            "normalization": self.normalization,
            "recurrent_initializer": keras.initializers.serialize(self.recurrent_initializer),
        }
