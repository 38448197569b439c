"""The implicit function theorem: gradients of any order, with memory independent of depth."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfdeq.adjoints.adjoint import (
    Adjoint,
    SolveSettings,
    argument_gradients,
    attach,
    common_unit,
    largest_entries,
    vector_jacobian_product,
    widened,
)
from tfdeq.iteration import iterate
from tfdeq.rows import aligned, power_of_two
from tfdeq.solvers import Solver, get


@keras.saving.register_keras_serializable(package="tfdeq")
@dataclasses.dataclass(frozen=True)
class Implicit(Adjoint):
    """Implicit differentiation of the fixed point.

    With J = ∂f/∂z at z*, the cotangent dz of z* determines u by u = Jᵀu + dz. This fixed point is
    solved like the first one, with one vector–Jacobian product per step and sample. The result is the
    image of the best iterate, so the last product is used too. The gradient is uᵀ ∂f/∂args. It is exact
    up to the residuals of both solves. For derivatives of higher order the adjoint is applied to u
    again. z0 gets no gradient, because the equilibrium does not depend on it.

    Args:
        solver: solver of the backward solve, or its name; it has its own tolerance and budget. None: the
            forward solver (GMRES for the splitting methods), with the tolerance and patience of the forward
            solve and at least its own max_steps. A call's backward_tolerance and backward_max_steps override
            both.

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

    def attach_gradient(self, f, z, args, settings):
        backward = settings._replace(
            solver=self.solver or settings.solver.for_linear_systems(),
            limits=settings.backward_limits,
        )
        return _attach(f, z, args, backward)

    def get_config(self):
        return {"solver": keras.saving.serialize_keras_object(self.solver)}

    @classmethod
    def from_config(cls, config):
        solver = config["solver"]
        if isinstance(solver, dict):
            solver = keras.saving.deserialize_keras_object(solver)
        return cls(solver=solver)


def _attach(f: Callable[..., Any], z: Any, args: Any, settings: SolveSettings) -> Any:
    """Returns z unchanged, with the implicit gradient of z = f(z, *args) with respect to args.

    settings: settings of the backward solve.
    """

    def pullback(z, args, d_z):
        u = solve_adjoint(f, z, args, d_z, settings)
        return argument_gradients(f, z, args, u)

    return attach(z, args, pullback)


def solve_adjoint(
    f: Callable[..., Any],
    z: Any,
    args: Any,
    d_z: Any,
    settings: SolveSettings,
    start: Any = None,
) -> Any:
    """Returns u = Jᵀu + d_z, itself differentiable in z, args and d_z.

    The u of half-precision leaves is float32, so that small cotangents do not underflow.

    settings: solver, limits and callback of the backward solve. start: first guess of u, by default
    d_z.
    """
    d_z = tf.nest.map_structure(widened, d_z)
    fixed_z, fixed_args, fixed_d_z = tf.nest.map_structure(tf.stop_gradient, (z, args, d_z))
    # The solver works on v = u / scale, for a d_z of about unit size.
    largest = largest_entries(fixed_d_z)
    scale = power_of_two(largest)
    fixed_d_z = _scaled(fixed_d_z, 1 / scale)
    # Half precision computes with u / unit. The unit is the same for all samples: if f mixes
    # samples, as BatchNormalization does in training, J does not commute with a unit per sample.
    halves = any(leaf.dtype.size < 4 for leaf in tf.nest.flatten(z))
    unit = common_unit(largest) if halves else tf.ones([], scale.dtype)
    product = _scaled_product(f, fixed_z, fixed_args, scale, unit)

    def linear(u):
        return tf.nest.map_structure(tf.add, product(u), fixed_d_z)

    # Starting from u = d_z saves one product compared with zeros, whose image is d_z.
    if start is None:
        start = fixed_d_z
    else:
        start = tf.nest.map_structure(lambda leaf: tf.stop_gradient(widened(leaf)), start)
        start = _scaled(start, 1 / scale)
    # The result of the last product is u one step further, so it is returned.
    solution = iterate(
        linear,
        start,
        settings.solver,
        **settings.limits._asdict(),
        return_image=True,
        linear_part=product,
    )
    if settings.backward_callback is not None:
        settings.backward_callback(solution)

    def pure(u, z, args, d_z):
        product = vector_jacobian_product(f, z, args, u, lambda z, _: z)
        return tf.nest.map_structure(tf.add, product, d_z)

    settings = settings._replace(backward_callback=None)
    return _attach(pure, _scaled(solution.z, scale), (z, args, d_z), settings)


def _scaled_product(
    f: Callable[..., Any], z: Any, args: Any, scale: tf.Tensor, unit: tf.Tensor
) -> Callable[[Any], Any]:
    """Returns v -> Jᵀ(v · scale) / scale, computed with v · scale / unit. scale: [B]; unit: a scalar."""
    # Linearise once: the tape's intermediates are loop invariants, so each step costs one product.
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(z)
        output = f(z, *args)

    def product(v):
        u_product = tape.gradient(
            output,
            z,
            output_gradients=_cast_like(_scaled(v, scale / unit), z),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return _scaled(tf.nest.map_structure(widened, u_product), unit / scale)

    return product


def _cast_like(nest: Any, like: Any) -> Any:
    return tf.nest.map_structure(lambda leaf, other: tf.cast(leaf, other.dtype), nest, like)


def _scaled(nest: Any, scale: tf.Tensor) -> Any:
    """Multiplies sample b of each [B, ...] leaf by scale[b]."""

    def multiply(leaf):
        product = leaf * tf.cast(aligned(scale, leaf), leaf.dtype)
        product.set_shape(leaf.shape)
        return product

    return tf.nest.map_structure(multiply, nest)
