"""A copy of what training changes: the weights, the layers' state and the optimizer's."""

import keras
import numpy as np


class TrainingState:
    """The values of a model's and its optimizer's variables, copied when this is made.

    Metrics and seed generators are left out: after a return the noise is new.

    Args:
        model: a built model with its optimizer, built too.

    Attributes:
        finite: whether none of the values is NaN or infinite.
    """

    def __init__(self, model: keras.Model):
        variables = {}
        for variable in [*model.weights, *model.optimizer.variables]:
            variables[id(variable)] = variable
        self._values = [
            # A copy: on the CPU an array may share the variable's memory.
            (variable, np.array(keras.ops.convert_to_numpy(variable)))
            for variable in variables.values()
        ]
        self.finite = all(_is_finite(value) for _, value in self._values)

    def restore(self) -> None:
        """Gives the variables their values back."""
        for variable, value in self._values:
            variable.assign(value)


def _is_finite(value: np.ndarray) -> bool:
    if value.dtype.kind in "iub" or value.dtype.kind not in "fV":
        return True
    if value.dtype.itemsize < 4:
        value = value.astype(np.float32)  # half precision, also ml_dtypes' kinds
    return bool(np.isfinite(value).all())
