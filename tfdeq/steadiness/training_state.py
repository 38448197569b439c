"""A copy of everything that training changes: weights, states of the layers and the optimizer."""

import keras
import numpy as np


class TrainingState:
    """The values of a model's and its optimizer's variables, copied at construction.

    Metrics and seed generators are excluded, so that the noise is new after a restore.

    Args:
        model: a built model with a built optimizer.

    Attributes:
        finite: whether none of the values is NaN or infinite.
    """

    def __init__(self, model: keras.Model):
        variables = {}
        for variable in [*model.weights, *model.optimizer.variables]:
            variables[id(variable)] = variable
        self._values = [
            # A copy, because on the CPU an array may share the variable's memory.
            (variable, np.array(keras.ops.convert_to_numpy(variable)))
            for variable in variables.values()
        ]
        self.finite = all(_is_finite(value) for _, value in self._values)

    def restore(self) -> None:
        """Restores the values of the variables."""
        for variable, value in self._values:
            variable.assign(value)


def _is_finite(value: np.ndarray) -> bool:
    if value.dtype.kind in "iub" or value.dtype.kind not in "fV":
        return True
    if value.dtype.itemsize < 4:
        value = value.astype(np.float32)  # half precision, including the dtypes of ml_dtypes
    return bool(np.isfinite(value).all())
