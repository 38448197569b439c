"""Cells: f(z, x) as Keras layers."""

from tfdeq.cells.composed import ComposedCell
from tfdeq.cells.dense import DenseCell
from tfdeq.cells.group_attention import GroupAttention
from tfdeq.cells.monotone import (
    LipschitzBounded,
    MonotoneConvolution,
    MonotoneDense,
    MonotoneMultiscaleConvolution,
)
from tfdeq.cells.multiscale import MultiscaleCell
from tfdeq.cells.nested_recursion import NestedRecursion
from tfdeq.cells.normalized_dense import WeightNormalizedDense, normalized_dense
from tfdeq.cells.recall_convolution import RecallConvolution
from tfdeq.cells.stacked import StackedCell, stacked
from tfdeq.cells.token_mixing import TokenMixing
from tfdeq.cells.transformer import TransformerCell
from tfdeq.cells.trellis import TrellisCell
from tfdeq.cells.weight_tied import WeightTiedCell, weight_tied

__all__ = [
    "ComposedCell",
    "DenseCell",
    "GroupAttention",
    "LipschitzBounded",
    "MonotoneConvolution",
    "MonotoneDense",
    "MonotoneMultiscaleConvolution",
    "MultiscaleCell",
    "NestedRecursion",
    "RecallConvolution",
    "StackedCell",
    "TokenMixing",
    "TransformerCell",
    "TrellisCell",
    "WeightNormalizedDense",
    "WeightTiedCell",
    "normalized_dense",
    "stacked",
    "weight_tied",
]
