"""tfdeq: deep equilibrium models for TensorFlow and Keras."""

import importlib
from typing import Any

# keras.models.load_model finds only classes that are imported, so cells and models are imported
# here.
from tfdeq import baselines, callbacks, cells, models
from tfdeq.adjoints import (
    Implicit,
    JacobianFree,
    PhantomGradient,
    ReversibleBackprop,
    Shine,
    Unrolled,
)
from tfdeq.best_of import BestOf, best_of
from tfdeq.certificates import certified_radius
from tfdeq.fixed_point import fixed_point
from tfdeq.gradient_report import gradient_report
from tfdeq.layer import DEQLayer
from tfdeq.regularizers import jacobian_penalty, spectral_radius
from tfdeq.solution import Solution, Status, describe
from tfdeq.solve_scope import SolveScope
from tfdeq.solvers import (
    GMRES,
    Anderson,
    Broyden,
    FixedPointIteration,
    ForwardBackward,
    NewtonKrylov,
    PeacemanRachford,
    Reversible,
)
from tfdeq.spectral_norm import SpectralNorm, spectral_norm_bound
from tfdeq.version import __version__
from tfdeq.warm_starts import WarmStarts

__all__ = [
    "GMRES",
    "Anderson",
    "BestOf",
    "Broyden",
    "DEQLayer",
    "FixedPointIteration",
    "ForwardBackward",
    "Implicit",
    "JacobianFree",
    "NewtonKrylov",
    "PeacemanRachford",
    "PhantomGradient",
    "Reversible",
    "ReversibleBackprop",
    "Shine",
    "Solution",
    "SolveScope",
    "SpectralNorm",
    "Status",
    "Unrolled",
    "WarmStarts",
    "__version__",
    "baselines",
    "best_of",
    "callbacks",
    "cells",
    "certified_radius",
    "describe",
    "fixed_point",
    "gradient_report",
    "jacobian_penalty",
    "models",
    "spectral_norm_bound",
    "spectral_radius",
]

# Imported on first use, because many programs do not need them.
_PACKAGES = ("data", "serving", "training")


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"tfdeq.{name}")
    raise AttributeError(f"module 'tfdeq' has no attribute {name!r}")
