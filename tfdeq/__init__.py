"""tfdeq: deep equilibrium models for TensorFlow and Keras."""

from tfdeq.adjoints import (
    Implicit,
    JacobianFree,
    PhantomGradient,
    ReversibleBackprop,
    Shine,
    Unrolled,
)
from tfdeq.fixed_point import fixed_point
from tfdeq.gradient_report import gradient_report
from tfdeq.layer import DEQLayer
from tfdeq.regularizers import jacobian_penalty, spectral_radius
from tfdeq.solution import Solution, Status, describe
from tfdeq.solvers import (
    GMRES,
    Anderson,
    Broyden,
    FixedPointIteration,
    NewtonKrylov,
    Reversible,
)
from tfdeq.version import __version__

__all__ = [
    "GMRES",
    "Anderson",
    "Broyden",
    "DEQLayer",
    "FixedPointIteration",
    "Implicit",
    "JacobianFree",
    "NewtonKrylov",
    "PhantomGradient",
    "Reversible",
    "ReversibleBackprop",
    "Shine",
    "Solution",
    "Status",
    "Unrolled",
    "__version__",
    "describe",
    "fixed_point",
    "gradient_report",
    "jacobian_penalty",
    "spectral_radius",
]
