"""Cells of residual blocks on images, at one resolution or several."""

from tfdeq.cells.multiscale.multiscale_cell import MultiscaleCell

__all__ = ["MultiscaleCell"]
