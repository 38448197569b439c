"""Cells: f(z, x) as Keras layers."""

from tfdeq.cells.transformer import TransformerCell

__all__ = ["TransformerCell"]
