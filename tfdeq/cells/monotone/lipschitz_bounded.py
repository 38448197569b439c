"""A dense cell whose equilibrium has a Lipschitz constant that you choose."""

import keras
from keras import ops

from tfdeq.cells.monotone.dense import MonotoneDense
from tfdeq.solvers.solver import require_positive


@keras.saving.register_keras_serializable(package="tfdeq")
class LipschitzBounded(MonotoneDense):
    """f(z, x) = relu(z W + x U + b) with ‖z*(x) − z*(y)‖ <= γ ‖x − y‖ for all weights.

    W = I − ((I + Λ UᵀU Λ) / (2γ) + m I + A Aᵀ + B − Bᵀ) Λ^(−1), Λ > 0 diagonal.
    The operator is strongly monotone in the metric of Λ, in which the projection on z >= 0 is the same.
    It is as strongly monotone as U requires for the constant γ: written with columns, the difference δ of
    two equilibria satisfies
    δᵀΛ(I − W)δ <= δᵀΛU(x − y) <= (‖UᵀΛδ‖² / γ + γ ‖x − y‖²) / 2.
    The constant of `MonotoneDense` is ‖U‖ / m, which changes in training; here it is fixed, and A, B, U
    and Λ are free. Solvers and `tfdeq.certified_radius` work as for `MonotoneDense`, in that metric.

    Layers after the equilibrium multiply the constant: a linear readout multiplies it by its norm.

    Args:
        units: d, size of the state.
        lipschitz: γ > 0. Default 1.
        monotonicity: m > 0, in addition to what γ requires. Default 0.1.
        recurrent_scale: as for `MonotoneDense`. Default 0.5.

    Call arguments: z [B, ..., d]; x from `inject`. Returns [B, ..., d].

    Raises:
        ValueError: for settings out of range.

    Source: Revay, Wang, Manchester, Lipschitz Bounded Equilibrium Networks, arXiv:2010.01732, theorem 2
        and section 4, with the identity as the output layer.

    Example:
        >>> from tfdeq import DEQLayer
        >>> layer = DEQLayer(LipschitzBounded(4, lipschitz=2.0), solver="peaceman_rachford")
        >>> layer(keras.ops.ones([2, 3])).shape
        TensorShape([2, 4])
    """

    def __init__(
        self,
        units: int,
        lipschitz: float = 1.0,
        monotonicity: float = 0.1,
        recurrent_scale: float = 0.5,
        **kwargs,
    ):
        super().__init__(units, monotonicity, recurrent_scale, **kwargs)
        require_positive("lipschitz", lipschitz)
        self.lipschitz = float(lipschitz)
        # The logarithm of Λ, one number per unit.
        self.logarithm = keras.layers.Dense(
            units,
            use_bias=False,
            kernel_initializer="zeros",
            dtype=self.dtype_policy,
            name="logarithm",
        )

    def metric(self):
        if not self.logarithm.built:
            self.logarithm.build((None, 1))
        return ops.exp(ops.convert_to_tensor(self.logarithm.kernel)[0])

    def recurrent_kernel(self):
        metric = self.metric()
        u = ops.convert_to_tensor(self.injection.kernel) * metric
        identity = ops.eye(self.units, dtype=u.dtype)
        wanted = (identity + ops.matmul(ops.transpose(u), u)) / (2 * self.lipschitz)
        free = identity - super().recurrent_kernel()  # m I + A Aᵀ + B − Bᵀ
        return identity - (wanted + free) / metric

    def get_config(self):
        return {**super().get_config(), "lipschitz": self.lipschitz}
