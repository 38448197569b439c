"""Ways to train an equilibrium, as the literature has them, for benchmarks.compare."""

from collections.abc import Mapping
from typing import Any

# Without what our own recipe adds; what is not named here stays as the flags say.
_BARE = {"jacobian_penalty": 0.0, "shallow_share": 0.0, "sampled_depth": 0, "correction_steps": []}

RECIPES: dict[str, dict[str, Any]] = {
    # Bai, Kolter, Koltun, arXiv:1909.01377: a few unrolled steps first, then the equilibrium.
    "pretraining, then implicit": {**_BARE, "shallow_share": 0.25, "shallow_steps": 4},
    # Bai, Koltun, Kolter, arXiv:2106.14342: a penalty that is changed along the run.
    "implicit, penalty grows": {
        **_BARE,
        "shallow_share": 0.05,
        "shallow_steps": 2,
        "jacobian_penalty": 0.1,
        "jacobian_penalty_end": 1.0,
    },
    # Geng, Zhang, Bai, Wang, Lin, arXiv:2111.05177.
    "phantom gradients": {
        "adjoint": "phantom_gradient",
        "adjoint_steps": 4,
        "adjoint_damping": 0.5,
    },
    # Geng, Kolter, arXiv:2310.18605: its best language model.
    "12 unrolled, checkpointed": {
        **_BARE,
        "adjoint": "unrolled",
        "adjoint_steps": 12,
        "training_max_steps": 12,
        "max_steps": 12,
        "tolerance": 1e-6,
    },
    # McCallum, Arora, Foster, arXiv:2509.12917.
    "reversible": {"solver": "reversible", "adjoint": "reversible_backprop"},
    "sampled depth": {"sampled_depth": 3},
    # Bai, Geng, Savani, Kolter, arXiv:2204.08442.
    "fixed-point correction": {"correction_steps": ["2", "4"]},
    "one application's gradient": {"adjoint": "jacobian_free"},
    "implicit, no penalty": {"jacobian_penalty": 0.0},
}


def recipe_variants(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns name -> configuration: the flags' own recipe, and each of `RECIPES`."""
    return {
        "equilibrium": dict(config),
        **{name: {**config, **changes} for name, changes in RECIPES.items()},
    }
