"""The devices for training, by `--strategy`, with tf.distribute."""

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

STRATEGIES = ("one_device", "mirrored", "multi_worker", "tpu")


def make_strategy(name: str, logical_devices: int = 0, tpu: str = "") -> tf.distribute.Strategy:
    """Returns the strategy with a name; call it before anything else runs on a device.

    Args:
        name: "one_device": the first GPU, or the CPU. "mirrored": every GPU of this machine, or its
            CPU. "multi_worker": every process listed in TF_CONFIG, each with all its GPUs or its CPU.
            "tpu": all cores of a TPU.
        logical_devices: divides the CPU into this many devices for "mirrored", to try it without
            several GPUs; 0: no division.
        tpu: name or address of the TPU; "": the one in the environment.

    Raises:
        ValueError: for an unknown name, for "multi_worker" without a valid TF_CONFIG, or for a TPU that
            cannot be found.
    """
    if name not in STRATEGIES:
        raise ValueError(f"--strategy must be one of {', '.join(STRATEGIES)}; received {name!r}.")
    if logical_devices:
        _divide_cpu(logical_devices)
    if name == "mirrored":
        gpus = not logical_devices and tf.config.list_logical_devices("GPU")
        kind = "GPU" if gpus else "CPU"
        return tf.distribute.MirroredStrategy(
            [device.name for device in tf.config.list_logical_devices(kind)]
        )
    if name == "multi_worker":
        _check_tf_config(os.environ.get("TF_CONFIG"))
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "tpu":
        return _tpu_strategy(tpu)
    return tf.distribute.get_strategy()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the run's files; only one of several workers does."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    chief = "chief" in resolver.cluster_spec().jobs
    return resolver.task_type == "chief" or (
        not chief and resolver.task_type == "worker" and resolver.task_id == 0
    )


def several_workers(strategy: tf.distribute.Strategy) -> bool:
    """Whether other processes train the same model."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return False
    cluster = strategy.cluster_resolver.cluster_spec()
    return sum(cluster.num_tasks(job) for job in cluster.jobs) > 1


def check_batch_size(strategy: tf.distribute.Strategy, batch_size: int, parts: int) -> None:
    """Raises an error for a batch that the replicas cannot share evenly.

    Raises:
        ValueError: if replicas times parts does not divide batch_size.
    """
    replicas = strategy.num_replicas_in_sync
    if batch_size % (replicas * parts):
        raise ValueError(
            f"--batch_size={batch_size} is the batch of all devices together and must be a multiple of "
            f"{replicas * parts}: {replicas} replicas, each with {parts} parts (--accumulation_steps). "
            "Change one of them."
        )


def distribute(
    strategy: tf.distribute.Strategy, batches: Callable[[int, int], Any]
) -> Iterator[Any]:
    """Returns an iterator of batches, each replica's rows on its device.

    Args:
        batches: (shard, shards) -> the data set of one worker, with the shard's rows of each batch.
    """
    if strategy.num_replicas_in_sync == 1:
        return iter(batches(0, 1))

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        workers = context.num_input_pipelines
        here = context.num_replicas_in_sync // workers
        dataset = batches(context.input_pipeline_id, workers)
        if here == 1:
            return dataset
        # One element per replica, in the order of the replicas.
        return dataset.map(lambda *batch: tf.nest.map_structure(split(here), batch)).unbatch()

    def split(count: int) -> Callable[[tf.Tensor], tf.Tensor]:
        return lambda leaf: tf.reshape(leaf, [count, leaf.shape[0] // count, *leaf.shape[1:]])

    return iter(strategy.distribute_datasets_from_function(of_worker))


def _divide_cpu(count: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * count
    )


def _check_tf_config(text: str | None) -> None:
    example = (
        '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
        '"task": {"type": "worker", "index": 0}}'
    )
    if not text:
        raise ValueError(
            "--strategy=multi_worker takes the cluster from the environment variable TF_CONFIG, which "
            f"is not set. Set it in every process, for example {example}, with an index of its own."
        )
    try:
        config = json.loads(text)
        workers = config["cluster"]["worker"]
        kind, index = config["task"]["type"], int(config["task"]["index"])
        if kind == "worker" and not 0 <= index < len(workers):
            raise ValueError(f"task index {index} of {len(workers)} workers")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"TF_CONFIG cannot be used ({type(error).__name__}: {error}); received {text!r}. It looks "
            f"like {example}."
        ) from error


def _tpu_strategy(tpu: str) -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=tpu)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except Exception as error:  # the type of the error depends on where it occurs
        raise ValueError(
            f"--strategy=tpu found no TPU of the name {tpu!r}: {error}. Name one by --tpu, or train "
            "with another --strategy."
        ) from error
    return tf.distribute.TPUStrategy(resolver)
