"""Ways to train an equilibrium from the literature, for benchmarks.training.compare."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Recipe(NamedTuple):
    """A way to train; settings that are not given are those of trainers.language_model's flags."""

    source: str
    flags: dict[str, Any]


# Without the additions of this project's recipe.
_BARE = {"jacobian_penalty": 0.0, "shallow_share": 0.0}

RECIPES: dict[str, Recipe] = {
    "pretraining, then implicit": Recipe(
        "Bai, Kolter, Koltun, arXiv:1909.01377: a few unrolled steps first, then tight solves",
        {
            **_BARE,
            "shallow_share": 0.25,
            "shallow_steps": 4,
            "solver": "broyden",
            "max_steps": 30,
            "training_max_steps": 30,
            "backward_solver": "broyden",
            "backward_max_steps": 30,
        },
    ),
    "implicit, penalty grows": Recipe(
        "Bai, Koltun, Kolter, arXiv:2106.14342: a penalty that is changed along the run",
        {"jacobian_penalty": 0.1, "jacobian_penalty_end": 10.0},
    ),
    "phantom gradients": Recipe(
        "Geng, Zhang, Bai, Wang, Lin, arXiv:2111.05177",
        {"adjoint": "phantom_gradient", "adjoint_steps": 4, "adjoint_damping": 0.5},
    ),
    "12 unrolled, checkpointed": Recipe(
        "Geng, Kolter, arXiv:2310.18605: its best language model",
        {
            **_BARE,
            "adjoint": "unrolled",
            "adjoint_steps": 12,
            "training_max_steps": 12,
            "max_steps": 12,
            "tolerance": 1e-6,
        },
    ),
    "reversible": Recipe(
        "McCallum, Arora, Foster, arXiv:2509.12917",
        {"solver": "reversible", "adjoint": "reversible_backprop"},
    ),
    "sampled depth": Recipe(
        "a budget that is drawn anew each step, around the usual one", {"sampled_depth": 3}
    ),
    "fixed-point correction": Recipe(
        "Bai, Geng, Savani, Kolter, arXiv:2204.08442", {"correction_steps": ["2", "4"]}
    ),
    "one application's gradient": Recipe(
        "Fung et al., arXiv:2103.12803", {"adjoint": "jacobian_free"}
    ),
    "implicit, no penalty": Recipe("for comparison", {"jacobian_penalty": 0.0}),
}


def recipe_variants(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns name -> configuration: that of the flags, and each of `RECIPES`."""
    return {
        "equilibrium": dict(config),
        **{name: {**config, **recipe.flags} for name, recipe in RECIPES.items()},
    }


def recipe_rows() -> list[tuple[str, str, str]]:
    """Returns (name, source, flags of trainers.language_model) for each recipe, for a table."""
    rows = [("equilibrium", "the default; see the README", "")]
    for name, recipe in RECIPES.items():
        values = ((k, ",".join(v) if isinstance(v, list) else v) for k, v in recipe.flags.items())
        rows.append((name, recipe.source, "`" + " ".join(f"--{k}={v}" for k, v in values) + "`"))
    return rows
