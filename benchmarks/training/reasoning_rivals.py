"""Ways to learn puzzles from the literature, for benchmarks.training.reasoning."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Rival(NamedTuple):
    """A way to train; settings that are not given are those of the task's recipe."""

    source: str
    flags: dict[str, Any]


# Without the additions of this project's recipes.
_BARE = {"jacobian_penalty": 0.0, "settling_penalty": 0.0, "shallow_share": 0.0, "start_noise": 0.0}
_LAST = {**_BARE, "adjoint": "unrolled"}
_SUPERVISED = {
    **{"segments": 16, "halting": "exact", "path_noise": 0.0},
    **{"sampled_depth": 0, "max_steps": 48},
}


def rivals(config: Mapping[str, Any]) -> dict[str, Rival]:
    """Returns the rivals of a task's recipe, with its budgets.

    If the recipe uses segments, rivals that train on whole solves have the budget of two segments.
    """
    budget, whole = _whole_solves(config)
    # A convolution of one layer sees one place further on each side: as many as the equilibrium applies.
    layers = budget if config["cell"] == "convolution" else 8
    return {
        "unrolled": Rival(
            "all applications differentiated, with ordinary backpropagation",
            {**_LAST, **whole, "adjoint_steps": budget + config["sampled_depth"]},
        ),
        "progressive loss": Rival(
            "Bansal et al., arXiv:2202.05826",
            {**_BARE, **whole, "progressive_weight": 1.0 if config["task"] == "prefix_sums" else 0.5},
        ),
        "truncated recursion": Rival(
            "Jolicoeur-Martineau, arXiv:2510.04871: nested recursion, three applications a segment, the last "
            "one differentiated, 16 segments, averaged weights",
            {
                **_LAST,
                **_SUPERVISED,
                "recursion": True,
                "adjoint_steps": 1,
                "training_max_steps": 3,
                "training_max_steps_end": 3,
                "ema": 0.999,
                "block": 0,
            },
        ),
        "deep supervision": Rival(
            "Wang et al., arXiv:2506.21734: 16 segments of three applications, the last one differentiated",
            {
                **_LAST,
                **_SUPERVISED,
                "adjoint_steps": 1,
                "training_max_steps": 3,
                "training_max_steps_end": 3,
            },
        ),
        "implicit gradient alone": Rival(
            "the equilibrium's gradient without penalties, after explicit applications",
            {**_BARE, **whole, "adjoint": "implicit", "backward_max_steps": 30, "shallow_share": 0.3,
             "shallow_steps": 20},
        ),
        "feed-forward": Rival(
            f"{layers} layers, each with weights of its own, applied once",
            {**_BARE, **whole, "depth": 1, "layers": layers},
        ),
    }  # fmt: skip


def _whole_solves(config: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Returns the flags, with the budget, of rivals that train on whole solves."""
    budget = max(config["training_max_steps"], config["training_max_steps_end"])
    if not config["segments"]:
        return budget, {}
    flags = {"training_max_steps": 2 * budget, "training_max_steps_end": 2 * budget}
    return 2 * budget, {**flags, "segments": 0, "halting": "none", "path_noise": 0.0}


def variants(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns name -> configuration: the task's recipe, and each of its rivals."""
    found = {name: {**config, **rival.flags} for name, rival in rivals(config).items()}
    return {"equilibrium": dict(config), **found}
