"""Cells: f(z, x) as Keras layers."""

from tfdeq.cells.dense import DenseCell
from tfdeq.cells.normalized_dense import WeightNormalizedDense, normalized_dense
from tfdeq.cells.transformer import TransformerCell

__all__ = ["DenseCell", "TransformerCell", "WeightNormalizedDense", "normalized_dense"]
