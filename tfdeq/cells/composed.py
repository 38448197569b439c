"""Several cells in sequence as one cell."""

from collections.abc import Sequence

import keras


@keras.saving.register_keras_serializable(package="tfdeq")
class ComposedCell(keras.layers.Layer):
    """f(z, x) = f_L(… f_2(f_1(z, x), x) …, x): one application applies several cells in sequence.

    Each cell has its own weights. The result is a deeper cell, as in recursive reasoners, or, applied once
    (`explicit_steps=1`), a feed-forward network of L layers.

    Args:
        cells: at least one, each on states like the input, such as `RecallConvolution`.

    Call arguments: z like the input; x from `inject`; mask: passed to every cell, if all take one.
    Returns the same as z.

    Raises:
        ValueError: without cells, or for cells of different widths.

    Example:
        >>> from tfdeq import DEQLayer
        >>> from tfdeq.cells import RecallConvolution
        >>> cell = ComposedCell([RecallConvolution(8, rank=1) for _ in range(2)])
        >>> DEQLayer(cell, solver="fixed_point_iteration")(keras.ops.ones([2, 5, 8])).shape
        TensorShape([2, 5, 8])
    """

    def __init__(self, cells: Sequence[keras.layers.Layer], **kwargs):
        super().__init__(**kwargs)
        self.cells = list(cells)
        widths = {getattr(cell, "width", None) for cell in self.cells}
        if len(widths) != 1:
            raise ValueError(
                f"cells must be at least one, all of one width; received widths {sorted(map(str, widths))}."
            )
        self.width = widths.pop()
        self.supports_masking = all(cell.supports_masking for cell in self.cells)

    @property
    def reach(self) -> int | None:
        """How many places away one application sees; None if one of the cells has no `reach`."""
        each = [getattr(cell, "reach", None) for cell in self.cells]
        return None if None in each else sum(each)

    def inject(self, x):
        """Returns the result of each cell's `inject` for the input: {"0": …, "1": …}."""
        return {
            str(place): cell.inject(x) if hasattr(cell, "inject") else x
            for place, cell in enumerate(self.cells)
        }

    def initial_state(self, x):
        """Returns zeros like the input."""
        return keras.ops.zeros_like(x)

    def call(self, z, x, mask=None):
        given = {} if mask is None else {"mask": mask}
        for place, cell in enumerate(self.cells):
            z = cell(z, x[str(place)], **given)
        return z

    def get_config(self):
        cells = [keras.saving.serialize_keras_object(cell) for cell in self.cells]
        for cell in cells:
            cell.pop("build_config", None)  # the cells are built when they are first called
        return {**super().get_config(), "cells": cells}

    @classmethod
    def from_config(cls, config):
        cells = [keras.saving.deserialize_keras_object(cell) for cell in config.pop("cells")]
        return cls(cells, **config)
