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
_PTB_WORDS = {"flagfile": preset("ptb_words")}


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
    # Half of the preset's steps. Twelve applications of the cell, and the LSTM, take about as long as the
    # equilibrium's 2,500 on one core. The second equilibrium has as many steps as the twelve applications.
    "ptb_words": Suite(
        "trainers.language_model",
        {
            "DEQ-Transformer": {**_PTB_WORDS, "train_steps": 2500},
            "DEQ-Transformer of fewer steps": {**_PTB_WORDS, "train_steps": 1100},
            "12 applications of its cell": {**_PTB_WORDS, **_EXPLICIT, "train_steps": 1100},
            "LSTM": {**_PTB_WORDS, **_LSTM, "train_steps": 4200},
        },
    ),
}
