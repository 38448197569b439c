"""The base class of adjoints, and functions that several of them use."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf

from tfdeq.adjoints.differentiation import differentiated
from tfdeq.compaction import BoundFunction
from tfdeq.iteration import iterate
from tfdeq.numerics.limits import Limits
from tfdeq.rows import power_of_two
from tfdeq.solution import Solution
from tfdeq.solvers import Solver


class SolveSettings(NamedTuple):
    """Settings for solving and differentiating a fixed point.

    Attributes:
        solver: solver of the forward solve. limits: the limits that the call sets.
        backward_limits: the same for the backward solves; None: their solver's.
        backward_callback: receives the `Solution` of each first-order backward solve.
        iterates: numbers of evaluations after which to keep the state. trace: whether to keep
            residuals.
    """

    solver: Solver
    limits: Limits = Limits()
    backward_limits: Limits = Limits()
    backward_callback: Callable[[Solution], None] | None = None
    iterates: tuple[int, ...] = ()
    trace: bool = False


@dataclasses.dataclass(frozen=True)
class Adjoint:
    """The base class of adjoints. An adjoint (a backward rule) computes the gradient of a fixed point.

    Attributes:
        exact: whether the adjoint with its default settings gives the gradient of the equilibrium up to
            the residuals of the solves. False: an approximation, described in its docstring.
        solver_kind: the class of forward solvers that the adjoint works with; others raise an error.
    """

    exact: ClassVar[bool] = False
    solver_kind: ClassVar[type[Solver]] = Solver

    def solve(self, f: Callable[..., Any], z0: Any, args: Any, settings: SolveSettings) -> Solution:
        """Solves z = f(z, *args) and gives z its gradient with respect to args.

        For args and errors see `tfdeq.fixed_point`. Adjoints without a backward solve never call the
        settings' backward_callback.
        """
        if not self.takes_iterates:
            raise TypeError(
                f"{type(self).__name__} is incomplete: an adjoint must define attach_gradient() or "
                "solve()."
            )
        solution = iterate_with_states(BoundFunction(f, args), z0, settings)
        # Only the backward solve at the final state is reported, not those at earlier iterates.
        on_the_way = settings._replace(backward_callback=None)
        return solution._replace(
            z=self.attach_gradient(f, solution.z, args, settings),
            iterates=[
                self.attach_gradient(f, state, args, on_the_way) for state in solution.iterates
            ]
            or (),
        )

    @property
    def takes_iterates(self) -> bool:
        """Whether the adjoint can give a gradient to single iterates of a solve."""
        return type(self).attach_gradient is not Adjoint.attach_gradient

    def attach_gradient(
        self, f: Callable[..., Any], z: Any, args: Any, settings: SolveSettings
    ) -> Any:
        """Returns the nest z unchanged, with the gradient that it has as a fixed point of f.

        Adjoints that need the whole solve, not only its result, override `solve` instead and refuse
        iterates.
        """
        raise ValueError(
            f"{type(self).__name__} differentiates a whole solve, not single iterates of it. To "
            "differentiate iterates, use tfdeq.Implicit, tfdeq.PhantomGradient or tfdeq.JacobianFree."
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Adjoint":
        return cls(**config)

    def _require_whole_solve(self, settings: SolveSettings) -> Solver:
        """Returns the solver; raises an error unless it is of the adjoint's kind and no iterates are
        asked for."""
        solver = settings.solver
        if settings.iterates:
            self.attach_gradient(None, None, None, settings)
        if not isinstance(solver, self.solver_kind):
            raise ValueError(
                f"{type(self).__name__} needs the forward solver tfdeq.{self.solver_kind.__name__}; "
                f"received {solver!r}. Use that solver, or another adjoint: tfdeq.Implicit works with "
                "every solver."
            )
        return solver


def iterate_with_states(f: BoundFunction, z0: Any, settings: SolveSettings) -> Solution:
    """Solves as `iterate` does; the state after n evaluations is the result of a solve with budget n."""
    solver, numbers, limits = settings.solver, settings.iterates, settings.limits
    whole = {**limits._asdict(), "trace": settings.trace}
    if not (numbers and solver.uses_products):
        return iterate(f, z0, solver, **whole, iterates=numbers)
    # The number of products per linearisation depends on the budget, so each budget needs its own
    # solve.
    most = solver.max_steps if limits.max_steps is None else limits.max_steps
    states = [
        iterate(f, z0, solver, **{**limits._asdict(), "max_steps": tf.minimum(most, number)}).z
        for number in numbers
    ]
    return iterate(f, z0, solver, **whole)._replace(iterates=states)


def attach(z: Any, args: Any, pullback: Callable[[Any, Any, Any], list[tf.Tensor]]) -> Any:
    """Returns z unchanged, with the gradient with respect to args that `pullback` gives.

    Args:
        z: nest of tensors without a gradient.
        args: nest of tensors; only its floating leaves receive a gradient.
        pullback: (z, args, d_z) -> gradients for `floating_leaves(args)`. Its z is the attached one, so
            that a derivative of the pullback includes the dependence of z on args.
    """
    args = tf.nest.map_structure(tf.identity, args)  # integers too: see `differentiated`
    z_leaves = tf.nest.flatten(z)
    count = len(z_leaves)

    def outputs_and_gradient(*inputs):
        def gradient(attached, *cotangents):
            d_args = pullback(
                tf.nest.pack_sequence_as(z, attached),
                with_floating_leaves(args, inputs[count:]),
                tf.nest.pack_sequence_as(z, list(cotangents)),
            )
            return [None] * count + list(d_args)

        return [tf.identity(leaf) for leaf in inputs[:count]], gradient

    inputs = [*z_leaves, *floating_leaves(args)]
    return tf.nest.pack_sequence_as(z, differentiated(outputs_and_gradient, inputs))


def floating_leaves(args: Any) -> list[tf.Tensor]:
    """The leaves that can carry a gradient, floating or complex, in order."""
    return [leaf for leaf in tf.nest.flatten(args) if _carries_gradient(leaf)]


def with_floating_leaves(args: Any, floats: Any) -> Any:
    """Returns args with its floating leaves replaced, in order."""
    remaining = iter(floats)
    leaves = [
        next(remaining) if _carries_gradient(leaf) else leaf for leaf in tf.nest.flatten(args)
    ]
    return tf.nest.pack_sequence_as(args, leaves)


def _carries_gradient(leaf: tf.Tensor) -> bool:
    return leaf.dtype.is_floating or leaf.dtype.is_complex


def vector_jacobian_product(
    f: Callable[..., Any], z: Any, args: Any, cotangent: Any, targets: Callable[[Any, Any], Any]
) -> Any:
    """Returns cotangentᵀ ∂f(z, *args)/∂targets(z, args), zeros where f does not depend on a target.

    The result is differentiable in z, args and cotangent. If the cotangent of a half-precision leaf is
    float32, so is the result, and the cotangent is scaled so that it neither overflows nor underflows
    in f.
    """
    # Makes tensors of the current graph. A tensor that a loop's body captured before a tape watches
    # it has another name there, and its gradient would be zero.
    z, args = tf.nest.map_structure(tf.identity, (z, args))
    wanted = targets(z, args)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(tf.nest.flatten(wanted))
        output = f(z, *args)
    dtypes = [leaf.dtype for leaf in tf.nest.flatten(output)]
    wide = any(d.dtype != t for d, t in zip(tf.nest.flatten(cotangent), dtypes, strict=True))
    if wide:
        unit = common_unit(tf.stop_gradient(largest_entries(cotangent)))
        cotangent = tf.nest.map_structure(
            lambda leaf, like: tf.cast(leaf / tf.cast(unit, leaf.dtype), like.dtype),
            cotangent,
            output,
        )
    products = tape.gradient(
        output,
        wanted,
        output_gradients=cotangent,
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    if not wide:
        return products
    return tf.nest.map_structure(
        lambda leaf: widened(tf.convert_to_tensor(leaf)) * tf.cast(unit, widened(leaf).dtype),
        products,
    )


def argument_gradients(f: Callable[..., Any], z: Any, args: Any, cotangent: Any) -> list[tf.Tensor]:
    """cotangentᵀ ∂f(z, *args)/∂args, for the floating leaves of args."""
    found = vector_jacobian_product(f, z, args, cotangent, lambda _, args: floating_leaves(args))
    return [
        gradient if gradient.dtype == leaf.dtype else tf.cast(gradient, leaf.dtype)
        for gradient, leaf in zip(found, floating_leaves(args), strict=True)
    ]


def widened(leaf: tf.Tensor) -> tf.Tensor:
    """Returns a half-precision leaf as float32, and others unchanged."""
    return tf.cast(leaf, tf.float32) if leaf.dtype.size < 4 else leaf


def largest_entries(nest: Any) -> tf.Tensor:
    """Returns [B] float32 or float64, each sample's largest absolute entry over all leaves [B, ...]."""
    leaves = tf.nest.flatten(nest)
    dtype = tf.float64 if any(leaf.dtype == tf.float64 for leaf in leaves) else tf.float32
    rows = [tf.cast(tf.reshape(leaf, [tf.shape(leaf)[0], -1]), dtype) for leaf in leaves]
    return tf.reduce_max(tf.concat([tf.abs(row) for row in rows], axis=1), axis=1)


def common_unit(largest: tf.Tensor) -> tf.Tensor:
    """Returns the largest power of two that is at most the largest of [B] entries >= 0; 1 if there is
    none."""
    return power_of_two(tf.reduce_max(tf.concat([largest, tf.zeros_like(largest[:1])], axis=0)))
