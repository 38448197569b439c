"""Starts the real trainer on several logical devices, or as several workers on the loopback device."""

import json
import os
import pathlib
import random
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).absolute().parents[2]
FLAGS = (
    "--dataset=text",
    "--batch_size=8",
    "--sequence_length=16",
    "--width=16",
    "--heads=2",
    "--feedforward=32",
    "--recurrent_scale=1",  # a nontrivial solve from the first step on
    "--warmup_share=0.2",
    "--shallow_share=0.2",
    "--evaluation_windows=16",
    "--log_every=1",
)


def write_text(folder):
    words = random.Random(0).choices(["equilibrium", "solver", "residual", "step"], k=3000)
    (folder / "words.txt").write_text(" ".join(words))


def start(folder, workdir, *flags, tf_config=None, before=""):
    """Starts the language model's trainer on the text in a folder; returns the process.

    Args:
        before: Python code that its process runs first.
    """
    environment = {**os.environ}
    environment.pop("TF_CONFIG", None)
    if tf_config is not None:
        environment["TF_CONFIG"] = json.dumps(tf_config)
    # With a memory all of the validation and test text is read, and a number of windows is not
    # allowed.
    own = [f for f in FLAGS if "--carry_memory" not in flags or "windows" not in f]
    program = f"{before}\nfrom trainers import language_model\nlanguage_model.run()"
    how = ["-c", program] if before else ["-m", "trainers.language_model"]
    command = [sys.executable, *how, *own, f"--workdir={workdir}"]
    command += [f"--files={folder / '*.txt'}", f"--prepared_dir={folder / 'prepared'}", *flags]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_workers(count, folder, workdir, *flags, before=None):
    """Starts several workers of one run, on free ports of the loopback device; the first is the chief.

    Args:
        before: index of a worker -> Python code that its process runs first.
    """
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return [
        start(
            folder,
            workdir,
            "--strategy=multi_worker",
            *flags,
            tf_config={
                "cluster": {"worker": addresses},
                "task": {"type": "worker", "index": index},
            },
            before=(before or {}).get(index, ""),
        )
        for index in range(count)
    ]


def finish(*processes, expect=0, seconds=240):
    """Waits for processes, checks their exit status and returns what they printed."""
    outputs = []
    try:
        for process in processes:
            outputs.append(process.communicate(timeout=seconds)[0])
            assert process.returncode == expect, outputs[-1]
    finally:
        end(*processes)
    return outputs


def end(*processes):
    """Ends processes that still run."""
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.communicate()


def read_metrics(workdir):
    return json.loads((workdir / "metrics.json").read_text())


def losses(metrics):
    return [loss for loss in metrics["train"]["loss"] if loss is not None]
