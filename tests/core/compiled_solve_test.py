"""What a compiled solve and its gradient are made of: nothing in them waits for the host or for Python."""

import re

import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import fast

SOLVERS = ["fixed_point_iteration", "anderson", "broyden", "newton_krylov"]
# Instructions by which a compiled program talks to the host.
TO_THE_HOST = {"infeed", "outfeed", "send", "recv", "send-done", "recv-done"}
# Operations that run Python, print, or look at a value on the host. (The loop's own condition is looked
# at by TensorFlow itself.)
OF_THE_HOST = {"PyFunc", "PyFuncStateless", "EagerPyFunc", "Print", "PrintV2", "Assert", "Where"}


def _step(solver):
    """Loss and gradients of an equilibrium, of weights and input."""
    weights = tf.constant([[0.3, 0.1], [-0.2, 0.4]])

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch([weights, x])
            z = tfdeq.fixed_point(lambda z, x, w: tf.tanh(z @ w + x), x, (x, weights), solver).z
            loss = tf.reduce_sum(z**2)
        return loss, tape.gradient(loss, [weights, x])

    return step


@pytest.mark.parametrize("solver", fast(["anderson"], SOLVERS))
def test_a_compiled_step_is_one_program_that_never_asks_the_host(solver):
    step = tf.function(_step(solver), jit_compile=True, autograph=False)
    program = step.experimental_get_compiler_ir(tf.ones([3, 2]))(stage="optimized_hlo")
    # NAME = TYPE opcode(operands…
    opcodes = set(re.findall(r"^\s*(?:ROOT )?%?\S+ = .*? ([a-z][a-z0-9-]*)\(", program, re.M))
    assert "while" in opcodes
    assert not opcodes & TO_THE_HOST
    assert "callback" not in program


@pytest.mark.parametrize("solver", fast(["anderson"], SOLVERS))
def test_no_operation_in_the_loops_of_a_graph_is_of_the_host(solver):
    step = tf.function(_step(solver), autograph=False)
    graph = step.get_concrete_function(tf.TensorSpec([None, 2])).graph.as_graph_def()
    functions = {function.signature.name: function for function in graph.library.function}
    loops = [node for node in graph.node if node.op in ("While", "StatelessWhile")]
    for function in functions.values():
        loops += [node for node in function.node_def if node.op in ("While", "StatelessWhile")]
    assert len(loops) >= 2  # forward and backward
    bodies, found = {loop.attr["body"].func.name for loop in loops}, set()
    while bodies:
        name = bodies.pop()
        found.add(name)
        for node in functions[name].node_def:
            assert node.op not in OF_THE_HOST, f"{node.op} {node.name} in {name}"
            called = [attr.func.name for attr in node.attr.values() if attr.HasField("func")]
            called += [f.name for attr in node.attr.values() for f in attr.list.func if f.name]
            bodies |= set(called) - found


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", fast([True], [False, True]))
def test_other_batch_sizes_are_not_traced_again(jit_compile):
    traces = []

    def counted(x):
        traces.append(x.shape)
        return _step("anderson")(x)

    step = tf.function(
        counted,
        input_signature=[tf.TensorSpec([None, 2])],
        jit_compile=jit_compile,
        autograph=False,
    )
    for rows in (1, 5):
        step(tf.ones([rows, 2]))
    assert len(traces) == 1
