"""SHINE: the backward pass uses the forward solve's estimate of the inverse Jacobian."""

import dataclasses

import keras
import tensorflow as tf

from tfdeq.adjoints.adjoint import Adjoint, argument_gradients, attach
from tfdeq.adjoints.implicit import solve_adjoint
from tfdeq.compaction import BoundFunction
from tfdeq.iteration import iterate
from tfdeq.numerics.state_layout import StateLayout
from tfdeq.solvers import Broyden
from tfdeq.solvers.solver import require_integer


@keras.saving.register_keras_serializable(package="tfdeq")
@dataclasses.dataclass(frozen=True)
class Shine(Adjoint):
    """Uses Broyden's inverse estimate, transposed, in place of a backward solve.

    u = −Hᵀ dz, where H ≈ (J − I)^(−1) is the forward solve's estimate of the inverse Jacobian of
    g(z) = f(z) − z; J = ∂f/∂z at z*. This is an approximation. It is best in the directions of the
    forward solve's steps, and more forward steps need not improve it, because Broyden's estimate need not
    converge to the inverse. It is exact if a sample's state is a single number. refine_steps evaluations
    of u ← Jᵀu + dz, by the forward solver from that start, bring it closer to the exact gradient. A sample
    whose estimate is not finite uses u = dz. A second derivative treats H as constant.

    Works only with the forward solver `Broyden`. With a bounded solver window, H consists of
    its newest updates.

    Args:
        refine_steps: largest number of vector–Jacobian products in a backward solve that starts from
            −Hᵀ dz, >= 0. Default 0: none.

    Raises:
        ValueError: for a setting out of range; at the call for a solver that is not `Broyden`.

    Source: Ramzi, Mannel, Bai, Starck, Ciuciu, Moreau, SHINE: SHaring the INverse Estimate from the
        forward pass for bi-level optimization and implicit models, arXiv:2106.00553.

    Example:
        >>> x = tf.ones([1, 1])
        >>> with tf.GradientTape() as tape:
        ...     tape.watch(x)
        ...     z = fixed_point(lambda z, x: 0.5 * z + x, x, (x,), adjoint=Shine()).z
        >>> round(float(tape.gradient(z, x)[0, 0]), 4)
        2.0
    """

    solver_kind = Broyden

    refine_steps: int = 0

    def __post_init__(self):
        require_integer("refine_steps", self.refine_steps, lowest=0)

    def solve(self, f, z0, args, settings):
        solver = self._require_whole_solve(settings)
        solution, state = iterate(
            BoundFunction(f, args),
            z0,
            solver,
            **settings.limits._asdict(),
            trace=settings.trace,
            return_state=True,
        )
        layout = StateLayout(solution.z)
        refining = settings._replace(
            limits=settings.backward_limits._replace(max_steps=self.refine_steps)
        )

        def estimate(d_z):
            v = layout.flatten(d_z)
            u = solver.transposed_inverse(state, solution.steps, v)
            finite = tf.reduce_all(tf.math.is_finite(u), axis=1, keepdims=True)
            return layout.unflatten(tf.where(finite, u, v))

        def pullback(z, args, d_z):
            u = estimate(d_z)
            if self.refine_steps:
                u = solve_adjoint(f, z, args, d_z, refining, u)
            return argument_gradients(f, z, args, u)

        return solution._replace(z=attach(solution.z, args, pullback))
