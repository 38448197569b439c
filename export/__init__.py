"""Writing equilibrium models as SavedModels, verifying, serving and loading them."""

import os
from typing import Any

# As in trainers: TensorFlow's start-up notes would bury a program's own lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    # Not imported until it is asked for: what reads versions alone needs no TensorFlow.
    if name == "load_model":
        from export.loading import load_model

        return load_model
    raise AttributeError(f"module 'export' has no attribute {name!r}")
