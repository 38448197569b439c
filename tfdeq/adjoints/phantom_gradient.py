"""Phantom gradients: a few damped applications of f from the equilibrium, differentiated."""

import dataclasses

import keras
import tensorflow as tf

from tfdeq.adjoints.adjoint import Adjoint, argument_gradients, attach
from tfdeq.solvers.solver import require_damping, require_positive_integer


@keras.saving.register_keras_serializable(package="tfdeq")
@dataclasses.dataclass(frozen=True)
class PhantomGradient(Adjoint):
    """The gradient of k damped applications of f that start from the equilibrium without its gradient.

    z ← (1 − λ) z + λ f(z, args), k times from z*: at an exact equilibrium u = λ Σ_{i<k} (λ Jᵀ + (1 − λ)
    I)^i dz in place of u = (I − J)^(−T) dz, J = ∂f/∂z at z*. This is an approximation, exact as k → ∞
    if the damped map is a contraction. There is no backward solve. The k applications are made when the
    gradient is computed, so their intermediates are in memory only then. The solution is the
    equilibrium itself, with the forward solve's residual and steps. A second derivative differentiates
    this adjoint, with the same approximation for how z* moves.

    Args:
        steps: k >= 1. Default 5.
        damping: λ in (0, 1], 1 for plain applications. Default 1.

    Raises:
        ValueError: for a setting out of range.

    Source: Geng, Zhang, Bai, Wang, Lin, On Training Implicit Models, arXiv:2111.05177, section 3.3
        (unrolling-based phantom gradient).

    Example:
        >>> x = tf.ones([1, 1])
        >>> with tf.GradientTape() as tape:
        ...     tape.watch(x)
        ...     z = fixed_point(lambda z, x: 0.5 * z + x, x, (x,), adjoint=PhantomGradient(3)).z
        >>> float(tape.gradient(z, x)[0, 0])  # 1 + 1/2 + 1/4; the equilibrium's is 2
        1.75
    """

    steps: int = 5
    damping: float = 1.0

    def __post_init__(self):
        require_positive_integer("steps", self.steps)
        require_damping(self.damping)

    def attach_gradient(self, f, z, args, settings):
        def damped(old, new):
            return new if self.damping == 1.0 else old + self.damping * (new - old)

        def applications(z, *args):
            for _ in range(self.steps):
                z = tf.nest.map_structure(damped, z, f(z, *args))
            return z

        def pullback(z, args, d_z):
            return argument_gradients(applications, z, args, d_z)

        return attach(z, args, pullback)
