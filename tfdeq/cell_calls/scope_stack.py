"""The active scopes: a stack for each thread, which the threads of replicas inherit."""

import collections
import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfdeq.cell_calls.call_time import current_graph, function_graph

_ACTIVE = threading.local()


class Entry:
    """One entry into a scope.

    Attributes:
        scope: the scope; None if all scopes are hidden.
        solutions, backward_solutions: the results of calls since then, by name.
    """

    def __init__(self, scope: Any):
        self.scope = scope
        self.solutions: dict[str, Any] = {}
        self.backward_solutions: dict[str, Any] = {}
        self.calls: collections.Counter[str] = collections.Counter()
        self.creators: Any = None
        graph = current_graph()
        self._graph = None if graph is None else weakref.ref(graph)

    def is_of(self, graph: tf.Graph | None) -> bool:
        """Whether the scope was entered in this graph (None: in eager mode)."""
        return self._entered_in() is graph

    def is_of_function(self, graph: tf.Graph | None) -> bool:
        """The same, where loops and branches count as part of their function."""
        return function_graph(self._entered_in()) is function_graph(graph)

    def _entered_in(self) -> Any:
        if self._graph is None:
            return None
        graph = self._graph()
        return _GONE if graph is None else graph


_GONE = object()


class _Carrier:
    """Passes a thread's stack to the threads of `strategy.run`, which copy the variable creators.

    As a variable creator it changes nothing. (MirroredStrategy passes on nothing else from a thread.)
    """

    def __init__(self, stack: list[Entry]):
        self.stack = stack

    def __call__(self, next_creator, **kwargs):
        return next_creator(**kwargs)


def push(entry: Entry) -> None:
    """Puts an entry on the stack of this thread."""
    stack = _stack()
    entry.creators = tf.variable_creator_scope(_Carrier(stack))
    entry.creators.__enter__()
    stack.append(entry)


def pop() -> None:
    """Removes the last entry from the stack of this thread."""
    _stack().pop().creators.__exit__(None, None, None)


@contextlib.contextmanager
def suspended() -> Iterator[None]:
    """Hides all scopes from a cell's evaluations, because their results cannot leave the solver's loop."""
    stack = _stack()
    stack.append(Entry(None))
    try:
        yield
    finally:
        stack.pop()


def innermost() -> Entry | None:
    """Returns the last entry of this thread's stack, or None."""
    stack = _stack()
    return stack[-1] if stack else None


def _stack() -> list[Entry]:
    if not hasattr(_ACTIVE, "stack"):
        graph = tf.compat.v1.get_default_graph()
        creators = [creator for _, creator in graph._variable_creator_stack]
        carriers = [creator for creator in creators if isinstance(creator, _Carrier)]
        _ACTIVE.stack = list(carriers[-1].stack) if carriers else []
    return _ACTIVE.stack
