"""Solvers, one method per file, each pure algebra on [B, D]."""

from typing import Any

from tfdeq.solvers.anderson import Anderson
from tfdeq.solvers.broyden import Broyden
from tfdeq.solvers.fixed_point_iteration import FixedPointIteration
from tfdeq.solvers.forward_backward import ForwardBackward
from tfdeq.solvers.gmres import GMRES
from tfdeq.solvers.newton_krylov import NewtonKrylov
from tfdeq.solvers.peaceman_rachford import PeacemanRachford
from tfdeq.solvers.reversible import Reversible
from tfdeq.solvers.solver import Solver

REGISTRY: dict[str, type[Solver]] = {
    "anderson": Anderson,
    "broyden": Broyden,
    "fixed_point_iteration": FixedPointIteration,
    "forward_backward": ForwardBackward,
    "gmres": GMRES,
    "newton_krylov": NewtonKrylov,
    "peaceman_rachford": PeacemanRachford,
    "reversible": Reversible,
}


def get(solver: str | Solver, **settings: Any) -> Solver:
    """Returns a solver object for a name (with optional settings) or the object itself.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
        TypeError: for anything that is neither a name nor a solver.
    """
    if isinstance(solver, Solver):
        return solver
    if not isinstance(solver, str):
        raise TypeError(f"solver must be a name or a tfdeq solver object; received {solver!r}.")
    if solver not in REGISTRY:
        known = ", ".join(sorted(REGISTRY))
        raise ValueError(f"Unknown solver {solver!r}. Known solvers: {known}.")
    return REGISTRY[solver](**settings)
