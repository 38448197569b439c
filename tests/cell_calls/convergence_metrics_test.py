import keras
import tensorflow as tf

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
    assert not test_step()  # a function of the user's that happens to have the name
    assert not in_evaluation()
