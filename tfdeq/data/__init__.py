"""Data sets of the trainers: token streams and examples, and batches of them.

    data = load("python_stdlib")
    batches = training_windows(data.train, sequence_length=256, batch_size=32, seed=0)

`tfdeq.data.text.registry` lists the texts.
"""

import importlib
from typing import Any

_PLACES = {
    "DATASETS": "text.registry",
    "Examples": "examples",
    "SPLITS": "token_data",
    "TokenData": "token_data",
    "evaluation_examples": "examples",
    "evaluation_segments": "segments",
    "evaluation_windows": "windows",
    "load": "text.registry",
    "stand_in": "text.registry",
    "training_examples": "examples",
    "training_segments": "segments",
    "training_windows": "windows",
}

__all__ = [*_PLACES]

_PACKAGES = ("images", "puzzles")


def __getattr__(name: str) -> Any:
    # Imported on first use: a trainer of images needs no text.
    if name in _PLACES:
        return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
