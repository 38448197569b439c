"""The implicit function theorem: gradients of any order at memory independent of depth."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfdeq.adjoints.adjoint import (
    Adjoint,
    argument_gradients,
    attach,
    vector_jacobian_product,
)
from tfdeq.iteration import iterate
from tfdeq.samples import aligned
from tfdeq.solution import Solution
from tfdeq.solvers import Solver, get


@keras.saving.register_keras_serializable(package="tfdeq")
@dataclasses.dataclass(frozen=True)
class Implicit(Adjoint):
    """Implicit differentiation of the fixed point.

    With J = ∂f/∂z at z*, the cotangent dz of z* gives u = Jᵀu + dz, solved as a fixed point of its
    own (per sample, one vector–Jacobian product a step; what is taken is the image of the best
    iterate, so that the last product counts too), and uᵀ ∂f/∂args. Exact up to the residuals
    of both solves. Derivatives of any order: the rule is applied to u again. z0 gets no gradient:
    the equilibrium does not depend on it.

    Args:
        solver: for the backward solve, with a tolerance and budget of its own: a solver, or its
            name. None: the forward solver with its settings.

    Source: Bai, Kolter, Koltun, Deep Equilibrium Models, arXiv:1909.01377, theorem 1.

    Example:
        >>> Implicit(solver="anderson").solver.memory
        6
    """

    exact = True

    solver: Solver | str | None = None

    def __post_init__(self):
        if self.solver is not None:
            object.__setattr__(self, "solver", get(self.solver))

    def attach_gradient(self, f, z, args, solver, backward_callback):
        return _attach(f, z, args, self.solver or solver, backward_callback)

    def get_config(self):
        return {"solver": keras.saving.serialize_keras_object(self.solver)}

    @classmethod
    def from_config(cls, config):
        solver = config["solver"]
        if isinstance(solver, dict):
            solver = keras.saving.deserialize_keras_object(solver)
        return cls(solver=solver)


def _attach(
    f: Callable[..., Any],
    z: Any,
    args: Any,
    solver: Solver,
    callback: Callable[[Solution], None] | None,
) -> Any:
    """Returns z unchanged, with the implicit gradient of z = f(z, *args) towards args."""

    def pullback(z, args, d_z):
        u = solve_adjoint(f, z, args, d_z, solver, callback)
        return argument_gradients(f, z, args, u)

    return attach(z, args, pullback)


def solve_adjoint(
    f: Callable[..., Any],
    z: Any,
    args: Any,
    d_z: Any,
    solver: Solver,
    callback: Callable[[Solution], None] | None,
    start: Any = None,
    max_steps: int | None = None,
) -> Any:
    """Returns u = Jᵀu + d_z, itself differentiable in z, args and d_z.

    start: a first guess of u, by default d_z. max_steps: by default the solver's.
    """
    fixed_z, fixed_args, fixed_d_z = tf.nest.map_structure(tf.stop_gradient, (z, args, d_z))
    # Linearise once: the tape's residuals are loop invariants, so that a step is one product.
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(fixed_z)
        output = f(fixed_z, *fixed_args)

    # The solver works on v = u / scale, for a d_z of about unit size, so that no square underflows.
    # Where f mixes samples, as BatchNormalization does in training, scale and J do not commute.
    scale = _scale_of(fixed_d_z)
    fixed_d_z = _scaled(fixed_d_z, 1 / scale)

    def product(v):
        u_product = tape.gradient(
            output,
            fixed_z,
            output_gradients=_scaled(v, scale),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return _scaled(u_product, 1 / scale)

    def linear(u):
        return tf.nest.map_structure(tf.add, product(u), fixed_d_z)

    # From u = d_z: one product is saved against zeros, whose image is d_z.
    start = (
        fixed_d_z
        if start is None
        else _scaled(tf.nest.map_structure(tf.stop_gradient, start), 1 / scale)
    )
    # The last product is put to use: its result is u one step further.
    solution = iterate(
        linear, start, solver, max_steps=max_steps, return_image=True, linear_part=product
    )
    if callback is not None:
        callback(solution)

    def pure(u, z, args, d_z):
        product = vector_jacobian_product(f, z, args, u, lambda z, _: z)
        return tf.nest.map_structure(tf.add, product, d_z)

    return _attach(pure, _scaled(solution.z, scale), (z, args, d_z), solver, None)


def _scale_of(d_z: Any) -> tf.Tensor:
    """[B] float, the power of two below each sample's largest absolute entry; 1 where all are 0.

    Products with powers of two are exact: where f does not mix samples, nothing changes by them.
    """
    leaves = tf.nest.flatten(d_z)
    dtype = tf.float64 if any(leaf.dtype == tf.float64 for leaf in leaves) else tf.float32
    rows = [tf.cast(tf.reshape(leaf, [tf.shape(leaf)[0], -1]), dtype) for leaf in leaves]
    largest = tf.reduce_max(tf.concat([tf.abs(row) for row in rows], axis=1), axis=1)
    # The exponent's bits alone are the power of two.
    integer, bits = (tf.int64, 0x7FF << 52) if dtype == tf.float64 else (tf.int32, 0xFF << 23)
    power = tf.bitcast(tf.bitcast(largest, integer) & tf.constant(bits, integer), dtype)
    usable = (power > 0) & tf.math.is_finite(power)
    return tf.where(usable, power, tf.ones_like(power))


def _scaled(nest: Any, scale: tf.Tensor) -> Any:
    """Multiplies sample b of each [B, ...] leaf by scale[b]."""

    def multiply(leaf):
        product = leaf * tf.cast(aligned(scale, leaf), leaf.dtype)
        product.set_shape(leaf.shape)
        return product

    return tf.nest.map_structure(multiply, nest)
