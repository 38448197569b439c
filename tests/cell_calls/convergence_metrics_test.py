import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import DenseCell, fast
from tfdeq import Solution, Status
from tfdeq.cell_calls.convergence_metrics import ConvergenceMetrics, in_evaluation


def test_means_over_samples_and_calls_then_reset():
    metrics = ConvergenceMetrics("layer")
    assert metrics.report("") == {}
    for residual, status in ((0.5, Status.MAX_STEPS), (0.1, Status.CONVERGED)):
        metrics(
            Solution(
                z=tf.zeros([2, 1]),
                residual=tf.constant([residual, 0.1]),
                steps=tf.constant([4, 8]),
                status=tf.constant([int(status), int(Status.CONVERGED)]),
            )
        )
    report = metrics.report("backward_")
    assert report["backward_steps"] == 6.0
    assert abs(report["backward_residual"] - 0.2) < 1e-7
    assert report["backward_converged"] == 0.75
    assert metrics.report("") == {}
    assert [metric.name for metric in metrics.all()] == [
        "layer_steps",
        "layer_residual",
        "layer_converged",
    ]


def test_without_any_residual_there_is_no_mean_of_them():
    metrics = ConvergenceMetrics("layer")
    metrics(
        Solution(
            z=tf.zeros([2, 1]),
            residual=tf.fill([2], tf.float32.max),
            steps=tf.constant([1, 1]),
            status=tf.fill([2], int(Status.NON_FINITE)),
        )
    )
    assert metrics.report("") == {"steps": 1.0, "converged": 0.0}


def test_evaluation_is_known_by_the_test_step_on_the_stack():
    class Model(keras.Model):
        def test_step(self):
            return in_evaluation()

    def test_step():
        return in_evaluation()

    assert Model().test_step()
    assert not test_step()  # a user's function that happens to have this name
    assert not in_evaluation()


class _Nosy(keras.callbacks.Callback):
    """A callback that calls the model between the batches of an evaluation."""

    def on_test_batch_end(self, batch, logs=None):
        self.model(tf.fill([7, 4], 50.0), training=False)


@pytest.mark.slow
@pytest.mark.parametrize("way", fast(["graph"], ["graph", "eager", "mirrored"]))
def test_evaluation_and_validation_count_and_nothing_else_does(way):
    mirrored = way == "mirrored"
    strategy = tf.distribute.MirroredStrategy(["CPU:0"]) if mirrored else None
    with strategy.scope() if mirrored else contextlib.nullcontext():
        inputs = keras.Input((4,))
        layer = tfdeq.DEQLayer(DenseCell(4), tfdeq.Anderson(), name="deq")
        model = keras.Model(inputs, layer(inputs))
        model.compile("sgd", "mse", run_eagerly=way == "eager", jit_compile=False)
    x = np.random.default_rng(0).normal(size=(10, 4)).astype("float32")

    def counted():
        return float(keras.ops.convert_to_numpy(layer._forward_metrics.steps.count))

    expected = float(tf.reduce_mean(tf.cast(layer(x, return_solution=True).steps, tf.float32)))
    for callbacks in ([], [_Nosy()]):
        logs = model.evaluate(x, x, 5, verbose=0, return_dict=True, callbacks=callbacks)
        np.testing.assert_allclose(logs["deq_steps"], expected, rtol=1e-6)
        assert counted() == 10.0
    model.predict(x, verbose=0)
    model(x)
    assert counted() == 10.0
    assert model.test_on_batch(x, x, return_dict=True)["deq_steps"] > 1.0
    history = model.fit(x, x, validation_data=(x, x), epochs=2, batch_size=5, verbose=0).history
    assert all(1.0 < steps < 30.0 for steps in history["val_deq_steps"])
    assert counted() == 10.0  # for the training batches, or for those of validation
