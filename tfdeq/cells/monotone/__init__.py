"""Cells whose equilibrium exists, is the only one, and moves no further than a bound says."""

from tfdeq.cells.monotone.convolution import MonotoneConvolution
from tfdeq.cells.monotone.dense import MonotoneDense
from tfdeq.cells.monotone.lipschitz_bounded import LipschitzBounded

__all__ = ["LipschitzBounded", "MonotoneConvolution", "MonotoneDense"]
