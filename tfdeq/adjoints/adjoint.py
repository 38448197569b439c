"""What every backward rule is, and the pieces that several of them need."""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfdeq.solution import Solution
from tfdeq.solvers import Solver


@dataclasses.dataclass(frozen=True)
class Adjoint:
    """A backward rule: how a fixed point carries a gradient to `args`."""

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
        `Solution` of each first-order backward solve.
        """
        raise TypeError(f"{type(self).__name__} is no complete adjoint: it lacks solve().")

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Adjoint":
        return cls(**config)


def vector_jacobian_product(
    f: Callable[..., Any], z: Any, args: Any, cotangent: Any, targets: Callable[[Any, Any], Any]
) -> Any:
    """Returns cotangentᵀ ∂f(z, *args)/∂targets(z, args), zeros where f does not depend on a target.

    Differentiable in z, args and cotangent.
    """
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
