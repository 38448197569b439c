"""The real program on a disk that fills up: an error, the last good checkpoint, and resumption."""

import json
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys

import pytest

ROOT = str(pathlib.Path(__file__).absolute().parents[2])
FLAGS = ("--dataset=text", "--files=words.txt", "--prepared_dir=prepared", "--log_every=1",
         "--evaluate_every=6", "--checkpoint_every=1", "--inspect_every=0", "--batch_size=4",
         "--sequence_length=16", "--width=16", "--heads=2", "--feedforward=32",
         "--evaluation_windows=8", "--nojit_compile", "--train_steps=6")  # fmt: skip


def run(folder, limit=None):
    """Trains in a folder with a limit on the size of files, as on a full disk."""

    def set_limit():
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-m", "trainers.language_model", *FLAGS, "--workdir=run"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ROOT},
        preexec_fn=set_limit,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_ends_with_an_error_that_names_the_last_good_checkpoint(tmp_path):
    words = random.Random(0).choices(["equilibrium", "solver", "residual", "step"], k=3000)
    (tmp_path / "words.txt").write_text(" ".join(words))
    process = subprocess.Popen(
        [sys.executable, "-m", "trainers.language_model", *FLAGS, "--workdir=run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ROOT},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoints = tmp_path / "run" / "checkpoints"
    while not list(checkpoints.glob("ckpt-2.index")):
        assert process.poll() is None
    process.kill()
    process.communicate()
    last = max(int(path.stem[5:]) for path in checkpoints.glob("ckpt-*.index"))
    size = max(path.stat().st_size for path in checkpoints.iterdir() if path.is_file())
    before = {path.name: path.read_bytes() for path in checkpoints.glob("ckpt-*")}

    full = run(tmp_path, limit=size - 1)
    assert full.returncode == 1, full.stdout + full.stderr
    assert f"Error: The checkpoint of step {last + 1} could not be written" in full.stderr
    assert f"the last good one is ckpt-{last}" in full.stderr
    assert "Traceback" not in full.stderr
    assert {path.name: path.read_bytes() for path in checkpoints.glob("ckpt-*")} == before

    again = run(tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"Resuming from run/checkpoints/ckpt-{last}" in again.stdout
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    rows = zip(metrics["train"]["step"], metrics["train"]["loss"], strict=True)
    assert [step for step, loss in rows if loss] == [1, 2, 3, 4, 5, 6]
