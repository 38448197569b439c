"""Publishers that are killed, run out of disk space or run simultaneously, and a poller like the server."""

import json
import multiprocessing
import os
import pathlib
import random
import resource
import signal
import threading
import time

import numpy as np
import pytest

from tfdeq.serving.server import runtime
from tfdeq.serving.versions import manifest, publishing

KILLS = 20


def _publish(output, count, ready=None, size_limit=None):
    """Publishes a small model repeatedly, in a separate process."""
    import keras

    import tfdeq
    from tfdeq.serving.kinds import runs
    from tfdeq.serving.versions import saved_model

    x = keras.Input((2,), name="x")
    z = keras.Input((2,))
    cell = keras.Model([z, x], keras.ops.tanh(keras.layers.Dense(2)(z) * 0.1 + x))
    model = keras.Model(x, tfdeq.DEQLayer(cell)(x))
    signatures = runs.of_model(model).signatures()
    if size_limit is not None:
        # Simulates a full disk; the signal would end the process before it could report the error.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_limit, size_limit))
    if ready is not None:
        ready.set()
    examples = {"x": np.ones([2, 2], np.float32)}
    for _ in range(count):
        saved_model.export(model, output, signatures, examples=examples, batch_sizes=[1, 2])


class Poller:
    """Reads the versions like the server, all the time, and records problems."""

    def __init__(self, output):
        self.output, self.wrong, self.good = output, [], set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()
        self._look()

    def _poll(self):
        while not self._done.is_set():
            self._look()
            time.sleep(0.002)

    def _look(self):
        for number, path in publishing.existing_versions(self.output).items():
            if number in self.good:
                continue
            try:
                check_whole(path, number)
                self.good.add(number)
            except Exception as error:  # any error is a finding
                self.wrong.append(f"{path.name}: {error!r}")


def check_whole(path, number):
    signatures = runtime.read_signatures(path)
    assert signatures.keys() == {"serving_default", "encode", "step"}
    card = json.loads((path / "assets.extra" / "model_card.json").read_text())
    assert card["version"] == number
    files = manifest.read(path)
    assert {"saved_model.pb", "variables/variables.index"} <= files.keys()
    extra = {"tf_serving_warmup_requests", "model_card.json"}
    assert {f"assets.extra/{name}" for name in extra} <= files.keys()
    manifest.require_whole(path)


@pytest.fixture(scope="module")
def processes():
    """Starts processes with the imports of a publisher."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tensorflow", "keras", "tfdeq", "export.saved_model"])
    return context


def start(processes, *arguments, **keywords):
    process = processes.Process(target=_publish, args=arguments, kwargs=keywords)
    process.start()
    return process


@pytest.mark.slow
def test_killed_at_random_moments(processes, tmp_path):
    moments = random.Random(0)
    with Poller(tmp_path) as poller:
        for _ in range(KILLS):
            ready = processes.Event()
            process = start(processes, tmp_path, 1000, ready)
            assert ready.wait(timeout=40)
            time.sleep(moments.uniform(0.0, 0.6))
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            assert process.exitcode == -signal.SIGKILL
    assert not poller.wrong
    # Some were killed while writing a version, as intended.
    assert list(tmp_path.glob(".tmp-*"))
    assert publishing.existing_versions(tmp_path).keys() == poller.good
    # Their files are removed when they are old enough to belong to no running process.
    for path in tmp_path.glob(".tmp-*"):
        os.utime(path, (0, 0))
    publishing.publish(tmp_path, lambda folder: (folder / "content").write_text(""))
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.slow
def test_two_at_once(processes, tmp_path):
    with Poller(tmp_path) as poller:
        publishers = [start(processes, tmp_path, 4) for _ in range(2)]
        for publisher in publishers:
            publisher.join(timeout=55)
        assert [publisher.exitcode for publisher in publishers] == [0, 0]
    assert not poller.wrong
    assert poller.good == set(range(1, 9))


@pytest.mark.slow
def test_a_full_disk(processes, tmp_path):
    whole = start(processes, tmp_path, 1)
    whole.join(timeout=55)
    assert whole.exitcode == 0
    sizes = [path.stat().st_size for path in (tmp_path / "1").rglob("*") if path.is_file()]
    with Poller(tmp_path) as poller:
        for limit in (100, max(sizes) // 2, max(sizes) - 1):
            process = start(processes, tmp_path, 1, size_limit=limit)
            process.join(timeout=55)
            assert process.exitcode == 1  # the writer's error, in words
    assert not poller.wrong
    assert sorted(path.name for path in pathlib.Path(tmp_path).iterdir()) == ["1"]
