"""Checks for tensors that f uses without receiving them as arguments, which get no gradient."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.framework.func_graph import FuncGraph


@contextlib.contextmanager
def check_closures(allowed: bool) -> Iterator[Callable[[Any], None]]:
    """Yields a function that raises an error if f, evaluated inside, used tensors that need a gradient.

    In eager mode these are tensors watched by an outer tape: it then records f's output although the
    arguments carry no gradient. In a graph, f is evaluated in the body of a loop, whose captures are
    traced back: an argument of the function being traced or a trainable variable needs a gradient,
    while tf.stop_gradient and constants end the search.

    Args:
        allowed: whether such tensors are allowed, so that nothing is checked.

    Raises (by the function, called with f's output):
        ValueError: for such a tensor.
    """
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    captures = isinstance(graph, FuncGraph) and not allowed
    before = {id(inner) for _, inner in graph.captures} if captures else set()

    def check(output: Any) -> None:
        if allowed:
            return
        if graph is None:
            leaves = [tf.convert_to_tensor(leaf) for leaf in tf.nest.flatten(output)]
            if leaves and record.should_record_backprop(leaves):
                raise ValueError(_MESSAGE.format("one that a tf.GradientTape watches"))
            return
        if not captures:
            return
        seen: dict[int, bool] = {}
        for outer, inner in graph.captures:
            if id(inner) not in before and _carries_gradient(outer, seen):
                raise ValueError(_MESSAGE.format(f"{outer.name}, shape {outer.shape}"))

    yield check


_MESSAGE = (
    "f uses a tensor that is not in args ({}): no gradient would reach it. Pass it, f(z, *args), "
    "through args; or, where no gradient is wanted, pass tf.stop_gradient of it."
)


def _carries_gradient(tensor: Any, seen: dict[int, bool]) -> bool:
    """Whether a gradient could flow through a tensor to an argument or a trainable variable."""
    # Without recursion, because a graph may be deep.
    stack = [tensor]
    while stack:
        tensor = stack.pop()
        if id(tensor) in seen or not _is_numeric(tensor):
            continue
        seen[id(tensor)] = True
        if hasattr(tensor, "numpy"):  # an eager tensor that the graph has captured
            if record.should_record_backprop([tensor]):
                return True
            continue
        operation = tensor.op
        if operation.type in ("StopGradient", "PreventGradient", "Const"):
            continue
        if operation.type in ("Placeholder", "PlaceholderWithDefault") and not operation.inputs:
            outer = _captured(tensor)
            if outer is None:
                return True
            stack.append(outer)
        elif operation.type == "ReadVariableOp":
            if _is_trainable(operation.inputs[0]):
                return True
        else:
            stack.extend(operation.inputs)
    return False


def _is_numeric(tensor: Any) -> bool:
    return tensor.dtype.is_floating or tensor.dtype.is_complex


def _captured(placeholder: Any) -> Any:
    """Returns the outer graph's tensor that a placeholder captures; None for an argument."""
    graph = placeholder.graph
    if isinstance(graph, FuncGraph):
        for outer, inner in graph.captures:
            if inner is placeholder:
                return outer
    return None


def _is_trainable(handle: Any) -> bool:
    """Whether a handle belongs to a trainable variable of the outer graphs."""
    while isinstance(getattr(handle, "graph", None), FuncGraph):
        outer = _captured(handle)
        # The graph being traced lists the variables that were read so far.
        for variable in [*handle.graph.variables, *handle.graph._watched_variables]:
            if variable.handle is handle or variable.handle is outer:
                return bool(variable.trainable)
        if outer is None:
            return False
        handle = outer
    return False
