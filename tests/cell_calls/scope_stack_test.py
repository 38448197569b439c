"""Which scopes are active: those of the thread, and of the thread that started a replica."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf

from tests.cell_calls.scoped_call_test import WAYS, after, model_with, predict
from tfdeq import SolveScope
from tfdeq.cell_calls.scope_stack import innermost, suspended


def test_scopes_end_with_their_block_also_by_an_error():
    with SolveScope() as outer:
        with pytest.raises(RuntimeError), SolveScope():
            raise RuntimeError
        assert innermost().scope is outer
        with suspended():
            assert innermost().scope is None
        assert innermost().scope is outer
    assert innermost() is None


def test_variables_are_made_inside_as_outside():
    with SolveScope():
        variable = tf.Variable(2.0)

        @tf.function
        def read():
            return variable + 1.0

        assert float(read()) == 3.0


@pytest.mark.slow
def test_threads_that_predict_at_once():
    model = model_with(WAYS["graph"])
    barrier, wrong = threading.Barrier(3), []

    def run(steps):
        barrier.wait()
        for _ in range(10):
            with SolveScope(max_steps=steps):
                found = predict(model)
            if not np.allclose(found, after(steps), atol=1e-6):
                wrong.append(steps)

    predict(model)
    threads = [threading.Thread(target=run, args=(steps,)) for steps in (1, 2, 3)]
    with SolveScope(max_steps=4):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        np.testing.assert_allclose(predict(model), after(4), atol=1e-6)
    assert not wrong


# In a separate process, because logical devices must be created before the first operation.
_TWO_DEVICES = """
import numpy as np, tensorflow as tf
from tfdeq.training.devices import strategies
strategy = strategies.make_strategy("mirrored", logical_devices=2)
from tests.cell_calls.scoped_call_test import SolveScope, WAYS, X, after, model_with, predict
half = tf.constant(X[:2])
for way in ("graph", "xla", "eager"):
    with strategy.scope():
        model = model_with({} if way == "eager" else WAYS[way])
    run = lambda: strategy.experimental_local_results(strategy.run(model, (half,)))
    ways = [lambda: predict(model, np.tile(X[:2], (2, 1)))] if way != "eager" else []
    ways.append(lambda: np.concatenate(run()))
    compiled = tf.function(run)
    ways.append(lambda: np.concatenate(compiled()))

    @tf.function
    def inside(steps):
        with SolveScope(max_steps=steps):
            return run()

    for call in ways:
        for steps in (2, 3):
            with SolveScope(max_steps=steps) as scope:
                found = call()
            np.testing.assert_allclose(found, np.tile(after(steps)[:2], (2, 1)), atol=1e-6)
        np.testing.assert_allclose(call(), np.tile(2 * X[:2], (2, 1)), atol=1e-5)
    for steps in (2, 3):
        np.testing.assert_allclose(inside(steps)[1], after(steps)[:2], atol=1e-6)
    with SolveScope(max_steps=2, starts={"half_replica_1": np.full([2, 3], 3.0, "float32")}) as scope:
        one, other = run()
        np.testing.assert_allclose(compiled()[1], other, atol=1e-6)
    np.testing.assert_allclose(one, after(2)[:2], atol=1e-6)
    np.testing.assert_allclose(other, after(2, 3.0)[:2], atol=1e-6)
    print(*sorted(scope.solutions))
"""


@pytest.mark.slow
def test_replicas():
    result = subprocess.run(
        [sys.executable, "-c", _TWO_DEVICES],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.stdout.split() == ["half", "half_replica_1"] * 3, result.stderr
