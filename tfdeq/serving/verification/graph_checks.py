"""Checks a served function's graph for contents that a server cannot run."""

from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf

# Ops that call back into the Python process that traced them, which a server does not have.
_PYTHON_OPS = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})
_COMPILED = "_XlaMustCompile"


def problems(
    function: tf.types.experimental.ConcreteFunction, jit_compile: bool = False
) -> list[str]:
    """Returns the reasons why the stock server cannot serve a concrete function.

    It and all functions that it calls are searched for writes to variables, calls back into Python, and
    jit-compiled functions (a stock server loads them but fails at the first request).

    Args:
        function: the function to serve.
        jit_compile: whether jit-compiled functions are allowed.

    Returns:
        One line per finding, sorted; [] for a function that can be served.
    """
    graph = function.graph.as_graph_def()
    library = {definition.signature.name: definition for definition in graph.library.function}
    found = set(_node_problems("the signature itself", graph.node, jit_compile))
    if _is_compiled(function.function_def.attr) and not jit_compile:
        found.add(f"the signature itself is jit-compiled ({_COMPILED})")
    for name in _reachable(graph.node, library):
        definition = library[name]
        found.update(_node_problems(f"function {name}", definition.node_def, jit_compile))
        if _is_compiled(definition.attr) and not jit_compile:
            found.add(f"function {name} is jit-compiled ({_COMPILED})")
    return sorted(found)


def _is_compiled(attributes: Any) -> bool:
    # Looking up a key would add it to protobuf's map, and so to the function.
    return _COMPILED in attributes and attributes[_COMPILED].b


def _node_problems(place: str, nodes: Iterable[Any], jit_compile: bool) -> Iterator[str]:
    for node in nodes:
        if "Assign" in node.op or node.op.startswith(("ResourceApply", "ResourceScatter")):
            yield f"{place} writes a variable: op {node.op}, node {node.name}"
        if node.op in _PYTHON_OPS:
            yield f"{place} calls Python: op {node.op}, node {node.name}"
        if _is_compiled(node.attr) and not jit_compile:
            yield f"{place} calls a jit-compiled function ({_COMPILED}): node {node.name}"


def _reachable(nodes: Iterable[Any], library: dict[str, Any]) -> set[str]:
    names: set[str] = set()
    waiting = _called(nodes, library)
    while waiting:
        name = waiting.pop()
        if name not in names:
            names.add(name)
            waiting |= _called(library[name].node_def, library)
    return names


def _called(nodes: Iterable[Any], library: dict[str, Any]) -> set[str]:
    names = set()
    for node in nodes:
        names.add(node.op)
        for value in node.attr.values():
            names.add(value.func.name)
            names.update(function.name for function in value.list.func)
    return names & library.keys()
