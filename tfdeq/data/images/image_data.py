"""`ImageData`: pictures in three splits, and the names of their classes."""

from typing import NamedTuple

from tfdeq.data.examples import Examples


class ImageData(NamedTuple):
    """Pictures with classes.

    Attributes:
        examples: splits of (pictures [N, H, W, C] uint8, classes [N] int32).
        classes: the name of each class.
    """

    examples: Examples
    classes: tuple[str, ...]
