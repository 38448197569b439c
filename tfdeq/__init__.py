"""tfdeq: deep equilibrium models for TensorFlow and Keras."""

from tfdeq.adjoints import Implicit
from tfdeq.fixed_point import fixed_point
from tfdeq.layer import DEQLayer
from tfdeq.regularizers import jacobian_penalty
from tfdeq.solution import Solution, Status, describe
from tfdeq.solvers import GMRES, Anderson, Broyden, FixedPointIteration, NewtonKrylov
from tfdeq.version import __version__

__all__ = [
    "GMRES",
    "Anderson",
    "Broyden",
    "DEQLayer",
    "FixedPointIteration",
    "Implicit",
    "NewtonKrylov",
    "Solution",
    "Status",
    "__version__",
    "describe",
    "fixed_point",
    "jacobian_penalty",
]
