"""How each cell is trained, as far as it was measured: defaults of the flags."""

from typing import Any

# Of all cells. On CPUs XLA's convolutions are slow: steps are not compiled.
RUN: dict[str, Any] = {
    "train_steps": 3000,
    "batch_size": 64,
    "learning_rate": 2e-3,
    "optimizer": "adam",
    "evaluate_every": 500,
    "checkpoint_every": 500,
    "jit_compile": False,
}
EQUILIBRIUM: dict[str, Any] = {
    "solver": "anderson",
    "max_steps": 10,
    "training_max_steps": 6,
    "backward_solver": "anderson",
    "backward_max_steps": 4,
}
# There is one equilibrium whatever the weights become: nothing has to hold it.
_MONOTONE: dict[str, Any] = {
    "solver": "peaceman_rachford",
    "max_steps": 20,
    "training_max_steps": 20,
    "backward_solver": "gmres",
    "backward_max_steps": 10,
    "jacobian_penalty": 0.0,
    "shallow_share": 0.0,
    "equilibrium_watch": "none",
    "recurrent_scale": 0.5,
}
# cell -> flag -> value, where it differs.
RECIPES: dict[str, dict[str, Any]] = {
    "multiscale": {},
    "residual": {},
    "monotone": {**_MONOTONE, "filters": 32},
    "monotone_multiscale": {**_MONOTONE, "branches": ["16", "32"]},
}
