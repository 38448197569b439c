"""Values that a compiled function reads at each of its calls, not when it is traced."""

from collections.abc import Callable, Hashable

import tensorflow as tf
from tensorflow.python.framework.func_graph import FuncGraph
from tensorflow.python.ops.control_flow_v2_func_graphs import (
    CondBranchFuncGraph,
    WhileBodyFuncGraph,
    WhileCondFuncGraph,
)
from tensorflow.python.saved_model import save_context

_CONTROL_FLOW = (CondBranchFuncGraph, WhileBodyFuncGraph, WhileCondFuncGraph)


def current_graph() -> tf.Graph | None:
    """Returns the graph that is being built; None in eager mode."""
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def function_graph(graph: tf.Graph | None) -> tf.Graph | None:
    """Returns the graph of the function that contains the graph of a loop or branch."""
    while isinstance(graph, _CONTROL_FLOW):
        graph = graph.outer_graph
    return graph


def can_ask(graph: tf.Graph | None) -> bool:
    """Whether the graph belongs to a function, which is called after it was traced."""
    return isinstance(function_graph(graph), FuncGraph)


def call_time_value(
    key: Hashable,
    ask: Callable[[], tf.Tensor],
    spec: tf.TensorSpec,
    default: Callable[[], tf.Tensor],
) -> tf.Tensor:
    """Returns a tensor whose value is that of `ask()` at each call of the function being traced.

    Like `FuncGraph.capture_call_time_value`, but it also works inside loops and branches, and `ask` is
    called in the context of each caller, even if the caller is another function that is being traced.

    Args:
        key: key of the value; a function calls `ask` once per key.
        ask: returns a tensor like spec, in the caller's context.
        spec: the tensor's dtype and shape.
        default: the value in a saved function; must be the same eager tensor each time.
    """
    graph = function_graph(current_graph())
    captures = graph.function_captures
    if key not in captures.by_ref_internal:
        # Without the device and the control dependencies of the place where it is first needed.
        with graph.as_default(), tf.device(None), tf.control_dependencies(None):
            placeholder = tf.compat.v1.placeholder(spec.dtype, spec.shape, "call_time_value")

        def external():
            return [default() if save_context.in_save_context() else ask()]

        external.output_spec = spec
        captures.add_or_replace(
            key=key, external=external, internal=placeholder, tracetype=spec, is_by_ref=True
        )
    return captures.by_ref_internal[key]
