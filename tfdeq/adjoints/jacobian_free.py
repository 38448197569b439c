"""Jacobian-free backpropagation: the gradient of one application of f."""

import dataclasses

import keras

from tfdeq.adjoints.adjoint import Adjoint, argument_gradients, attach


@keras.saving.register_keras_serializable(package="tfdeq")
@dataclasses.dataclass(frozen=True)
class JacobianFree(Adjoint):
    """The gradient of one application of f at the equilibrium.

    u = dz in place of u = (I − J)^(−T) dz, J = ∂f/∂z at z*: the gradient is dzᵀ ∂f/∂args, one
    vector–Jacobian product and no backward solve. This is an approximation, exact only if J = 0.
    For a contraction ‖J‖ < 1 with a well conditioned ∂f/∂args it is a descent direction. The forward
    solve and its `Solution` are those of `Implicit`. A second derivative differentiates this adjoint, with
    the same approximation for how z* moves.

    Source: Fung, Heaton, Li, McKenzie, Osher, Yin, JFB: Jacobian-Free Backpropagation for Implicit
        Networks, arXiv:2103.12803, theorem 3.1.

    Example:
        >>> x = tf.ones([1, 1])
        >>> with tf.GradientTape() as tape:
        ...     tape.watch(x)
        ...     z = fixed_point(lambda z, x: 0.5 * z + x, x, (x,), adjoint=JacobianFree()).z
        >>> float(tape.gradient(z, x)[0, 0])  # the equilibrium's is 2
        1.0
    """

    def attach_gradient(self, f, z, args, settings):
        def pullback(z, args, d_z):
            return argument_gradients(f, z, args, d_z)

        return attach(z, args, pullback)
