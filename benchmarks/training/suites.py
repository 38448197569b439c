"""The training runs that docs/results.md compares."""

import os
from typing import Any, NamedTuple

from tfdeq.programs.commands import PRESETS


class Suite(NamedTuple):
    """Runs that are compared with each other."""

    module: str  # the trainer
    runs: dict[str, dict[str, Any]]  # name -> the trainer's flags


def preset(name: str) -> str:
    """Returns the path of a preset."""
    return os.path.join(PRESETS, f"{name}.flags")


_COPY_MEMORY = {"sequence_length": 400}
_EXPLICIT = {"depth": 12, "jacobian_penalty": 0}
_LSTM = {"model": "lstm", "depth": 2, "dropout": 0.1}


def _ptb_words(train_steps: int, **changes: Any) -> dict[str, Any]:
    """Returns the preset's flags with a warm-up of 100 steps and the last weights, of whatever length."""
    return {
        "flagfile": preset("ptb_words"),
        "train_steps": train_steps,
        "warmup_share": 100 / train_steps,
        "keep": "last",
        **changes,
    }


SUITES = {
    "copy_memory": Suite(
        "trainers.copy_memory",
        {
            "DEQ-Transformer": {"flagfile": preset("copy_memory")},
            # The published figures are for about 16 thousand parameters.
            "TCN": {
                **_COPY_MEMORY,
                "model": "tcn",
                "depth": 8,
                "kernel_size": 8,
                "width": 11,
                "learning_rate": 2e-3,
                "train_steps": 4000,
            },
            "LSTM": {**_COPY_MEMORY, "model": "lstm", "depth": 1, "width": 44, "train_steps": 2000},
            "GRU": {**_COPY_MEMORY, "model": "gru", "depth": 1, "width": 50, "train_steps": 2000},
        },
    ),
    # Twelve applications of the cell, and the LSTM, have as many steps as fit the time of the
    # equilibrium's 5,000, or slightly more. The second equilibrium has as many steps as the twelve
    # applications.
    "ptb_words": Suite(
        "trainers.language_model",
        {
            "DEQ-Transformer": _ptb_words(5000),
            "DEQ-Transformer of fewer steps": _ptb_words(2200),
            "12 applications of its cell": _ptb_words(2200, **_EXPLICIT),
            "LSTM": _ptb_words(7000, **_LSTM),
        },
    ),
}
