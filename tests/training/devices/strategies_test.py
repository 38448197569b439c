import json
import os
import subprocess
import sys

import pytest
import tensorflow as tf

from tfdeq.training.devices import strategies


def test_one_device_is_tensorflows_own():
    strategy = strategies.make_strategy("one_device")
    assert strategy.num_replicas_in_sync == 1
    assert strategies.is_chief(strategy)
    assert not strategies.several_workers(strategy)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=r"one_device, mirrored, multi_worker, tpu; received 'two'"
    ):
        strategies.make_strategy("two")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "which is not set"),
        ("nonsense", "JSONDecodeError"),
        ('{"cluster": {}}', "KeyError: 'worker'"),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
            "task index 1 of 1 workers",
        ),
    ],
)
def test_workers_without_a_cluster_are_refused_with_an_example(monkeypatch, text, message):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="TF_CONFIG") as caught:
        strategies.make_strategy("multi_worker")
    assert message in str(caught.value)
    assert '"index": 0' in str(caught.value)


def test_no_tpu_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"no TPU of the name 'nowhere'.*--strategy"):
        strategies.make_strategy("tpu", tpu="nowhere")


@pytest.mark.slow
def test_one_worker_by_itself_is_the_chief():
    """In a separate process, like workers, because the cluster is part of TensorFlow's context."""
    with_one = {"cluster": {"worker": ["127.0.0.1:0"]}, "task": {"type": "worker", "index": 0}}
    program = (
        "from tfdeq.training.devices import strategies\n"
        "s = strategies.make_strategy('multi_worker')\n"
        "print(s.num_replicas_in_sync, strategies.is_chief(s), strategies.several_workers(s))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TF_CONFIG": json.dumps(with_one)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stdout.split() == ["1", "True", "False"], result.stderr


class FakeResolver:
    def __init__(self, jobs, task_type, task_id):
        self.task_type, self.task_id = task_type, task_id
        self._jobs = jobs

    def cluster_spec(self):
        return tf.train.ClusterSpec(self._jobs)


@pytest.mark.parametrize(
    ("jobs", "task_type", "task_id", "expected"),
    [
        ({"worker": ["a:1", "b:1"]}, "worker", 0, True),
        ({"worker": ["a:1", "b:1"]}, "worker", 1, False),
        ({"chief": ["c:1"], "worker": ["a:1"]}, "worker", 0, False),
        ({"chief": ["c:1"], "worker": ["a:1"]}, "chief", 0, True),
    ],
)
def test_one_of_several_workers_is_the_chief(jobs, task_type, task_id, expected):
    class Strategy:
        cluster_resolver = FakeResolver(jobs, task_type, task_id)

    assert strategies.is_chief(Strategy()) is expected


def test_a_batch_that_cannot_be_shared_is_refused():
    class Strategy:
        num_replicas_in_sync = 2

    strategies.check_batch_size(Strategy(), 12, 3)
    with pytest.raises(
        ValueError, match="--batch_size=10 .* multiple of 6: 2 replicas, each with 3"
    ):
        strategies.check_batch_size(Strategy(), 10, 3)


# In a separate process, because logical devices must be created before the first operation.
_TWO_DEVICES = """
import numpy as np
import tensorflow as tf
from tfdeq.training.devices import strategies
strategy = strategies.make_strategy("mirrored", logical_devices=2)
def batches(shard, shards):
    return tf.data.Dataset.range(3).map(lambda step: (tf.range(8) + 10 * tf.cast(step, tf.int32),))
found = []
for batch in strategies.distribute(strategy, batches):
    found.append([part.numpy().tolist() for part in strategy.experimental_local_results(batch[0])])
print(strategy.num_replicas_in_sync, found[1])
"""


@pytest.mark.slow
def test_each_replica_has_its_rows():
    result = subprocess.run(
        [sys.executable, "-c", _TWO_DEVICES],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    expected = "2 [[10, 11, 12, 13], [14, 15, 16, 17]]"
    assert result.stdout.strip() == expected, result.stderr


def test_one_device_has_all_rows():
    dataset = tf.data.Dataset.range(2)
    found = list(strategies.distribute(tf.distribute.get_strategy(), lambda *shard: dataset))
    assert [int(value) for value in found] == [0, 1]
