"""Monotone cells: for every input they have exactly one equilibrium, with a known Lipschitz constant."""

from tfdeq.cells.monotone.convolution import MonotoneConvolution
from tfdeq.cells.monotone.dense import MonotoneDense
from tfdeq.cells.monotone.lipschitz_bounded import LipschitzBounded
from tfdeq.cells.monotone.multiscale_convolution import MonotoneMultiscaleConvolution

__all__ = [
    "LipschitzBounded",
    "MonotoneConvolution",
    "MonotoneDense",
    "MonotoneMultiscaleConvolution",
]
