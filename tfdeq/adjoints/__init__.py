"""Adjoints, one per file: each computes the gradient of a fixed point in its own way."""

from typing import Any

from tfdeq.adjoints.adjoint import Adjoint
from tfdeq.adjoints.implicit import Implicit
from tfdeq.adjoints.jacobian_free import JacobianFree
from tfdeq.adjoints.phantom_gradient import PhantomGradient
from tfdeq.adjoints.reversible_backprop import ReversibleBackprop
from tfdeq.adjoints.shine import Shine
from tfdeq.adjoints.unrolled import Unrolled

REGISTRY: dict[str, type[Adjoint]] = {
    "implicit": Implicit,
    "jacobian_free": JacobianFree,
    "phantom_gradient": PhantomGradient,
    "reversible_backprop": ReversibleBackprop,
    "shine": Shine,
    "unrolled": Unrolled,
}


def get(adjoint: str | Adjoint, **settings: Any) -> Adjoint:
    """Returns an adjoint object for a name (with optional settings) or the object itself.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
        TypeError: for anything that is neither a name nor an adjoint.
    """
    if isinstance(adjoint, Adjoint):
        return adjoint
    if not isinstance(adjoint, str):
        raise TypeError(f"adjoint must be a name or a tfdeq adjoint object; received {adjoint!r}.")
    if adjoint not in REGISTRY:
        known = ", ".join(sorted(REGISTRY))
        raise ValueError(f"Unknown adjoint {adjoint!r}. Known adjoints: {known}.")
    return REGISTRY[adjoint](**settings)
