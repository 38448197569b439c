import tensorflow as tf

from tfdeq.training.records.profiler import Profiler


def test_five_steps_from_the_named_one(tmp_path):
    profiler = Profiler(str(tmp_path), 2)
    assert profiler.stops == (2, 7)
    for step in range(9):
        profiler.at(step)
        tf.reduce_sum(tf.ones([4]))
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))


def test_a_run_that_ends_while_it_is_profiled_keeps_the_profile(tmp_path):
    profiler = Profiler(str(tmp_path), 2)
    profiler.at(2)
    profiler.stop()
    profiler.stop()
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))


def test_none(tmp_path):
    profiler = Profiler(str(tmp_path), 0)
    for step in range(9):
        profiler.at(step)
    profiler.stop()
    assert list(tmp_path.iterdir()) == []
