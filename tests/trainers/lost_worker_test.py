"""One of two workers is killed or asked to end: the other ends too, and both can resume."""

import signal
import time

import pytest

from tests.support import worker_cases as cases
from tfdeq.programs.preemption import EXIT_CODE

FLAGS = ("--train_steps=60", "--evaluate_every=60", "--checkpoint_every=10", "--inspect_every=0",
         "--nojit_compile")  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lost_worker")
    cases.write_text(folder)
    cases.finish(*cases.start_workers(2, folder, folder / "whole", *FLAGS))
    return folder


def wait_for_checkpoint(workdir, step, processes):
    deadline = time.monotonic() + 120
    while not (workdir / "checkpoints" / f"ckpt-{step}.index").exists():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_other_ends_and_both_started_again_end_as_if_nothing_had_been(undisturbed, victim, how):
    workdir = undisturbed / f"{how.name}_{victim}"
    processes = cases.start_workers(2, undisturbed, workdir, *FLAGS)
    try:
        wait_for_checkpoint(workdir, 20, processes)
        processes[victim].send_signal(how)
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        cases.end(*processes)
    assert processes[1 - victim].returncode == EXIT_CODE, outputs[1 - victim]
    if how == signal.SIGKILL:
        assert "Another worker no longer responds" in outputs[1 - victim]
    else:
        assert processes[victim].returncode == EXIT_CODE
        assert "Stopped on request at step" in outputs[0]
    assert not (workdir / "metrics.json").exists()
    outputs = cases.finish(*cases.start_workers(2, undisturbed, workdir, *FLAGS))
    assert all("Resuming from" in output for output in outputs)
    found, expected = cases.read_metrics(workdir), cases.read_metrics(undisturbed / "whole")
    # Two processes add in a varying order, so the results are not equal bit for bit.
    assert cases.losses(found) == pytest.approx(cases.losses(expected), rel=1e-5)
    assert found["test"]["bits_per_byte"] == pytest.approx(
        expected["test"]["bits_per_byte"], rel=1e-5
    )
