"""Serving equilibrium models: versions that TF Serving loads, their verification, and a client.

path = tfdeq.serving.export(model, "models/classifier")
model = tfdeq.serving.load_model(path)
"""

import importlib
import os
from typing import Any

# TensorFlow's start-up messages would hide a program's own lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_PLACES = {
    "Client": "client.model_client",
    "convert": "edge.litert",
    "decode_text": "client.client_text",
    "encode_text": "client.client_text",
    "export": "versions.saved_model",
    "load_model": "versions.loading",
    "preset_from_run": "kinds.run_preset",
    "verify": "verification.verify",
}

__all__ = [
    "Client",
    "convert",
    "decode_text",
    "encode_text",
    "export",
    "load_model",
    "preset_from_run",
    "verify",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: programs that only read versions need no TensorFlow.
    if name in _PLACES:
        return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
