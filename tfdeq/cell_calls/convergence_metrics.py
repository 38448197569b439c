"""The convergence of solves as Keras metrics, which `fit` and `evaluate` show."""

import sys

import keras
import tensorflow as tf
from tensorflow.python.ops import cond_v2, while_v2

from tfdeq.solution import Solution


def in_evaluation() -> bool:
    """Whether the test_step of a Keras model is on the stack.

    `evaluate` shows convergence, but `predict` and exported functions must not write variables, and
    their arguments are the same as those of `evaluate`. Other ways were found to be unreliable. The
    model's `stop_evaluating` keeps its value after evaluate. A test_step wrapped when a layer first
    sees its model is wrapped too late. A wrapped `make_test_function` changes Keras for all its users,
    and misses a test_step that is called without it. Values that wait until `compute_metrics` reads the
    metric cannot leave a loop in the graph, and would include those of a callback's call of the model.
    """
    frame = sys._getframe()
    while frame is not None:
        # The name is checked first, because reading a frame's variables copies them.
        if frame.f_code.co_name == "test_step" and isinstance(
            frame.f_locals.get("self"), keras.Model
        ):
            return True
        frame = frame.f_back
    return False


_GRADIENTS = (while_v2._WhileBodyGradFuncGraph, cond_v2._CondGradFuncGraph)


def in_gradient_of_control_flow() -> bool:
    """Whether the gradient of a loop's body or of a branch is being traced.

    TensorFlow allows only variables in that graph that the body or branch itself uses.
    """
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None:
        if isinstance(graph, _GRADIENTS):
            return True
        graph = getattr(graph, "outer_graph", None)
    return False


class ConvergenceMetrics:
    """Means over samples of steps, residual and whether the tolerance was met.

    The backward solves of a layer in a loop or branch of a graph (tf.map_fn, tf.cond,
    keras.layers.RNN) are not counted.
    """

    def __init__(self, prefix: str):
        self.steps = keras.metrics.Mean(name=f"{prefix}_steps")
        self.residual = keras.metrics.Mean(name=f"{prefix}_residual")
        self.converged = keras.metrics.Mean(name=f"{prefix}_converged")

    def all(self) -> tuple[keras.metrics.Metric, ...]:
        return self.steps, self.residual, self.converged

    def report(self, prefix: str) -> dict[str, float]:
        # Through numpy, because under a tf.distribute strategy each device has a part of the count.
        if float(keras.ops.convert_to_numpy(self.steps.count)) == 0.0:
            return {}
        names = ["steps", "converged"]
        # If no sample had a residual, there is no mean.
        if float(keras.ops.convert_to_numpy(self.residual.count)):
            names.insert(1, "residual")
        values = {f"{prefix}{name}": float(getattr(self, name).result()) for name in names}
        for metric in self.all():
            metric.reset_state()
        return values

    def totals(self) -> tuple[float, float, float]:
        """Returns sums since the last reset: of residuals, of samples with a residual, and of samples."""
        variables = (self.residual.total, self.residual.count, self.steps.count)
        # Through numpy, because under a tf.distribute strategy each device has a part of the count.
        return tuple(float(keras.ops.convert_to_numpy(variable)) for variable in variables)

    def __call__(self, solution: Solution) -> None:
        if in_gradient_of_control_flow():
            return
        self.steps.update_state(solution.steps)
        # Samples without a residual (f was not finite at their start) would dominate the mean.
        known = solution.residual < solution.residual.dtype.max
        self.residual.update_state(solution.residual, sample_weight=tf.cast(known, tf.float32))
        self.converged.update_state(solution.converged)
