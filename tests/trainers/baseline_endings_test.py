"""A run with --baseline that is asked to end while its baselines train, or one baseline is."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support import ending_cases as cases

# The baselines evaluate often, so that they are still training when the model is done.
FLAGS = (
    *cases.FLAGS,
    "--baseline",
    "--train_steps=20",
    "--evaluate_every=2",
    "--evaluation_windows=100",
)
BASELINE = "depth_1_penalty_0"


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "trainers.language_model", *FLAGS, "--workdir=run"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(cases.ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def baseline(process):
    """Returns the process id of its baseline's trainer, if it runs."""
    task = f"/proc/{process.pid}/task"
    for thread in os.listdir(task):
        for child in map(int, _read(f"{task}/{thread}/children").split()):
            if "--workdir=run/baselines" in _read(f"/proc/{child}/cmdline"):
                return child
    return None


def _read(path):
    """Returns the text of a file in /proc; "" if its thread or process has ended in the meantime."""
    try:
        with open(path) as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def finish(process, status):
    try:
        said = process.communicate(timeout=120)[0]
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == status, said
    assert "Traceback" not in said
    return said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ends_with_its_baselines_and_goes_on(tmp_path):
    cases.write_text(tmp_path)
    log = tmp_path / "run" / "baselines" / f"{BASELINE}.log"
    rows = tmp_path / "run" / "baselines" / BASELINE / "curves.jsonl"
    # In sequence: both while the model trains, only one baseline, and the program while it waits.
    process = start(tmp_path)
    wait_for(lambda: rows.exists() and rows.read_text(), process)
    process.send_signal(signal.SIGTERM)
    said = finish(process, 75)
    assert "to resume from" in said
    assert "Stopped on request at step" in log.read_text()

    process = start(tmp_path)
    wait_for(lambda: baseline(process), process)
    child = baseline(process)
    os.kill(child, signal.SIGSTOP)  # until the model is done
    wait_for((tmp_path / "run" / "metrics.json").exists, process)
    os.kill(child, signal.SIGCONT)
    os.kill(child, signal.SIGTERM)
    said = finish(process, 75)
    assert (
        "was stopped on request. Run the same command again to resume from its last checkpoint"
        in said
    )
    assert not (rows.parent / "metrics.json").exists()

    for number in (signal.SIGTERM, signal.SIGINT):
        process = start(tmp_path)
        wait_for(lambda process=process: baseline(process), process)
        child = baseline(process)
        os.kill(child, signal.SIGSTOP)
        time.sleep(10)  # by now it waits for the baseline
        process.send_signal(number)
        time.sleep(0.5)
        os.kill(child, signal.SIGCONT)
        finish(process, 75)
        assert not os.path.exists(f"/proc/{child}")

    said = finish(start(tmp_path), 0)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["baseline"]
    finish(start(tmp_path), 0)


@pytest.mark.slow
def test_a_baseline_that_fails_is_one_line_that_names_its_log(tmp_path):
    cases.write_text(tmp_path)
    folder = tmp_path / "run" / "baselines" / BASELINE
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"width": 3}')
    said = finish(start(tmp_path), 1)
    (line,) = (line for line in said.splitlines() if line.startswith("Error: "))
    assert f"run/baselines/{BASELINE} failed with status 1" in line
    assert f"{BASELINE}.log. Run the same command again" in line
    assert (
        "another configuration" in (tmp_path / "run" / "baselines" / f"{BASELINE}.log").read_text()
    )
