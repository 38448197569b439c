"""What every backward rule is, and the pieces that several of them need."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import tensorflow as tf

from tfdeq.compaction import BoundFunction
from tfdeq.custom_gradient import custom_gradient_only
from tfdeq.iteration import iterate
from tfdeq.solution import Solution
from tfdeq.solvers import Solver


@dataclasses.dataclass(frozen=True)
class Adjoint:
    """A backward rule: how a fixed point carries a gradient to `args`.

    Attributes:
        exact: whether the rule as constructed by default gives the gradient of the equilibrium up to
            the residuals of the solves. False: an approximation, whose docstring says of what.
        solver_kind: the class of forward solvers that the rule works with; it refuses others.
    """

    exact: ClassVar[bool] = False
    solver_kind: ClassVar[type[Solver]] = Solver

    def solve(
        self,
        f: Callable[..., Any],
        z0: Any,
        args: Any,
        solver: Solver,
        tolerance: Any,
        max_steps: Any,
        backward_callback: Callable[[Solution], None] | None,
    ) -> Solution:
        """Solves z = f(z, *args) and gives z its gradient with respect to args.

        Args and errors: see `tfdeq.fixed_point`. backward_callback, if given, receives the
        `Solution` of each first-order backward solve; rules that solve nothing never call it.
        """
        if not self.takes_iterates:
            raise TypeError(
                f"{type(self).__name__} is no complete adjoint: it lacks attach_gradient() or solve()."
            )
        solution = iterate(BoundFunction(f, args), z0, solver, tolerance, max_steps)
        z = self.attach_gradient(f, solution.z, args, solver, backward_callback)
        return solution._replace(z=z)

    @property
    def takes_iterates(self) -> bool:
        """Whether the rule gives single iterates of a solve a gradient; see `solve_with_iterates`."""
        return type(self).attach_gradient is not Adjoint.attach_gradient

    def solve_with_iterates(
        self,
        f: Callable[..., Any],
        z0: Any,
        args: Any,
        solver: Solver,
        tolerance: Any,
        max_steps: Any,
        backward_callback: Callable[[Solution], None] | None,
        iterates: Sequence[int],
    ) -> tuple[Solution, list[Any]]:
        """As `solve`; also returns the states after these numbers of evaluations, with gradients."""
        solution, states = iterate(
            BoundFunction(f, args), z0, solver, tolerance, max_steps, iterates=iterates
        )
        z = self.attach_gradient(f, solution.z, args, solver, backward_callback)
        states = [self.attach_gradient(f, state, args, solver, None) for state in states]
        return solution._replace(z=z), states

    def attach_gradient(
        self,
        f: Callable[..., Any],
        z: Any,
        args: Any,
        solver: Solver,
        backward_callback: Callable[[Solution], None] | None,
    ) -> Any:
        """Returns the nest z unchanged, with the gradient that it has as a fixed point of f.

        Rules that need the whole solve, and not its result alone, override `solve` instead.
        """
        raise ValueError(
            f"{type(self).__name__} differentiates a whole solve, not single iterates of it. Use "
            "tfdeq.Implicit, tfdeq.PhantomGradient or tfdeq.JacobianFree where iterates are wanted."
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Adjoint":
        return cls(**config)

    def _require_solver_kind(self, solver: Solver) -> None:
        if not isinstance(solver, self.solver_kind):
            raise ValueError(
                f"{type(self).__name__} needs the forward solver tfdeq.{self.solver_kind.__name__}; "
                f"received {solver!r}. Use that solver, or another adjoint: tfdeq.Implicit works with "
                "every solver."
            )


def attach(z: Any, args: Any, pullback: Callable[[Any, Any, Any], list[tf.Tensor]]) -> Any:
    """Returns z unchanged, with the gradient towards args that `pullback` gives.

    Args:
        z: nest of tensors that carry no gradient of their own.
        args: nest of tensors; only its floating leaves receive a gradient.
        pullback: (z, args, d_z) -> gradients for `floating_leaves(args)`. Its z is the attached
            one: a derivative of the pullback then sees how z moves with args.
    """
    # Of the graph that is built now, as in vector_jacobian_product: a backward pass inside a loop, whose
    # own gradient is taken, knows no others.
    z, args = tf.nest.map_structure(tf.identity, (z, args))
    floats = floating_leaves(args)
    z_leaves = tf.nest.flatten(z)
    attached: list[Any] = []

    @tf.custom_gradient
    def identity(*inputs):
        float_args = inputs[len(z_leaves) :]

        def gradient(*cotangents):
            d_args = pullback(
                tf.nest.pack_sequence_as(z, attached),
                with_floating_leaves(args, float_args),
                tf.nest.pack_sequence_as(z, list(cotangents)),
            )
            return [None] * len(z_leaves) + list(d_args)

        return custom_gradient_only(inputs[: len(z_leaves)], inputs), gradient

    attached.extend(identity(*z_leaves, *floats))
    return tf.nest.pack_sequence_as(z, attached)


def floating_leaves(args: Any) -> list[tf.Tensor]:
    """The leaves that can carry a gradient, in order."""
    return [leaf for leaf in tf.nest.flatten(args) if leaf.dtype.is_floating]


def with_floating_leaves(args: Any, floats: Any) -> Any:
    """Returns args with its floating leaves replaced, in order."""
    remaining = iter(floats)
    leaves = [next(remaining) if leaf.dtype.is_floating else leaf for leaf in tf.nest.flatten(args)]
    return tf.nest.pack_sequence_as(args, leaves)


def vector_jacobian_product(
    f: Callable[..., Any], z: Any, args: Any, cotangent: Any, targets: Callable[[Any, Any], Any]
) -> Any:
    """Returns cotangentᵀ ∂f(z, *args)/∂targets(z, args), zeros where f does not depend on a target.

    Differentiable in z, args and cotangent.
    """
    # Tensors of the graph that is built now: what a loop's body has captured before a tape watches it
    # is known there by another name, and its gradient would be zero.
    z, args = tf.nest.map_structure(tf.identity, (z, args))
    wanted = targets(z, args)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(tf.nest.flatten(wanted))
        output = f(z, *args)
    return tape.gradient(
        output,
        wanted,
        output_gradients=cotangent,
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )


def argument_gradients(f: Callable[..., Any], z: Any, args: Any, cotangent: Any) -> list[tf.Tensor]:
    """cotangentᵀ ∂f(z, *args)/∂args, for the floating leaves of args."""
    return vector_jacobian_product(f, z, args, cotangent, lambda _, args: floating_leaves(args))
