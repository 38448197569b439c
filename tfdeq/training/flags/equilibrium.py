"""The flags of an equilibrium (solver, adjoint, penalty and their schedule), and settings made from them."""

from collections.abc import Mapping
from typing import Any

from absl import flags

from tfdeq import Implicit, adjoints, solvers
from tfdeq.training.equilibrium_watch import ACTIONS
from tfdeq.training.flags.shared import above_zero, at_least, bound, define

# absl's function, name, default, help, additional arguments.
_EQUILIBRIUM = [
    (flags.DEFINE_integer, "depth", 0, "0: the equilibrium. L: L explicit applications of the same cell, with ordinary backpropagation."),
    (flags.DEFINE_enum, "solver", "fixed_point_iteration", "Forward solver.", sorted(solvers.REGISTRY)),
    (flags.DEFINE_integer, "max_steps", 8, "Largest number of evaluations of the cell, per example, in the forward solve of the finished model."),
    (flags.DEFINE_integer, "training_max_steps", 5, "The same in training, at the first step that trains the equilibrium; from there it grows linearly to --training_max_steps_end."),
    (flags.DEFINE_integer, "training_max_steps_end", 0, "The same at the end of training; 0: --max_steps."),
    (flags.DEFINE_integer, "sampled_depth", 0, "Each training step draws its budget at random from a range of this many evaluations above and below; 0: no range."),
    (flags.DEFINE_float, "tolerance", 1e-3, "Relative residual at which an example has converged, forward and backward."),
    (flags.DEFINE_enum, "adjoint", "implicit", "Method that computes the gradient of the equilibrium.", sorted(adjoints.REGISTRY)),
    (flags.DEFINE_integer, "adjoint_steps", 5, "Number of applications that are differentiated."),
    (flags.DEFINE_float, "adjoint_damping", 1.0, "Damping of the applications that are differentiated, in (0, 1]."),
    (flags.DEFINE_enum, "backward_solver", "fixed_point_iteration", "Solver of the backward system.", sorted(solvers.REGISTRY)),
    (flags.DEFINE_integer, "backward_max_steps", 2, "Largest number of vector-Jacobian products, per example, in the backward solve."),
    (flags.DEFINE_float, "jacobian_penalty", 0.5, "Weight of the mean squared entry of J'e in the loss; 0: none."),
    (flags.DEFINE_float, "jacobian_penalty_end", 0.2, "Factor on that weight at the last step. The weight changes linearly; a factor above 1 makes it grow."),
    (flags.DEFINE_float, "jacobian_penalty_fraction", 0.0625, "Share of the batch that the penalty is estimated on, in (0, 1]."),
    (flags.DEFINE_integer, "jacobian_penalty_power_steps", 1, "Power iterations that turn the penalty's noise towards the direction that the Jacobian amplifies most."),
    (flags.DEFINE_float, "shallow_share", 0.05, "Share of the steps, at the start of training, that train a few explicit applications instead of the equilibrium."),
    (flags.DEFINE_integer, "shallow_steps", 1, "Number of explicit applications in those steps."),
    (flags.DEFINE_enum, "equilibrium_watch", "penalty", "What to raise while the mean residual of a row is above --watch_residual: the Jacobian penalty (doubled per row, up to 16 times), the budget (by a quarter per row, up to 4 times), or nothing.", ACTIONS),
    (flags.DEFINE_float, "watch_residual", 0.1, "Threshold of the equilibrium watch; below half of it the changes are undone."),
]  # fmt: skip


def define_equilibrium_flags(**defaults: Any) -> list[str]:
    """Defines the flags and returns their names; defaults override those above."""
    names = define(_EQUILIBRIUM, defaults)
    at_least(1, "max_steps", "training_max_steps", "adjoint_steps", "backward_max_steps",
             "shallow_steps")  # fmt: skip
    at_least(0, "depth", "training_max_steps_end", "sampled_depth", "jacobian_penalty", "jacobian_penalty_end",
             "jacobian_penalty_power_steps")  # fmt: skip
    above_zero("tolerance", "watch_residual")
    for name in ("adjoint_damping", "jacobian_penalty_fraction"):
        bound(name, lambda value: 0 < value <= 1, "must be in (0, 1]")
    bound("shallow_share", lambda value: 0 <= value <= 1, "must be in [0, 1]")
    return names


def equilibrium_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments of `tfdeq.DEQLayer` from a configuration: solver, adjoint, penalty and depth.

    Raises:
        ValueError: for an adjoint that does not work with the solver.
    """
    solver = solvers.get(
        config["solver"], max_steps=config["max_steps"], tolerance=config["tolerance"]
    )
    adjoint = adjoints.get(_adjoint(config))
    if not config["depth"]:  # explicit applications need no adjoint
        _check_adjoint(config, solver, adjoint)
    return {
        "solver": solver,
        "adjoint": adjoint,
        "jacobian_penalty": config["jacobian_penalty"],
        "jacobian_penalty_fraction": config["jacobian_penalty_fraction"],
        "jacobian_penalty_power_steps": config["jacobian_penalty_power_steps"],
        "explicit_steps": config["depth"],
    }


def _adjoint(config: Mapping[str, Any]) -> str | adjoints.Adjoint:
    rule = config["adjoint"]
    if rule == "implicit":
        backward = solvers.get(
            config["backward_solver"],
            max_steps=config["backward_max_steps"],
            tolerance=config["tolerance"],
        )
        return Implicit(backward)
    if rule == "unrolled":
        return adjoints.Unrolled(config["adjoint_steps"])
    if rule == "phantom_gradient":
        return adjoints.PhantomGradient(config["adjoint_steps"], config["adjoint_damping"])
    return rule


def _check_adjoint(
    config: Mapping[str, Any], solver: solvers.Solver, adjoint: adjoints.Adjoint
) -> None:
    """Raises an error for incompatible flags, before a run claims its folder."""
    kind = adjoint.solver_kind
    if not isinstance(solver, kind):
        known = [name for name, made in solvers.REGISTRY.items() if issubclass(made, kind)]
        raise ValueError(
            f"--adjoint={config['adjoint']} wants --solver={' or '.join(known)}; received "
            f"--solver={config['solver']}. Give that solver, or --adjoint=implicit, which works with all."
        )
