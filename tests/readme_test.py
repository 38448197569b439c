"""The README's Python code, run as by a new user."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).absolute().parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)
# Code that needs a server, a trained run or a cluster is run by those tests.
ALONE = [
    pytest.param(
        block,
        id=str(place),
        marks=pytest.mark.slow if re.search(r"\.(fit|generate)\(", block) else (),
    )
    for place, block in enumerate(BLOCKS)
    if "import tfdeq" in block
]


def test_there_are_examples():
    assert len(ALONE) >= 2


@pytest.mark.parametrize("block", ALONE)
def test_an_example_runs_by_itself(block, tmp_path):
    finished = subprocess.run(
        [sys.executable, "-c", block],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    # In the lines of `evaluate`, the loss falls with the tolerance.
    losses = [float(loss) for loss in re.findall(r"loss: ([0-9.e-]+)\s*$", finished.stdout, re.M)]
    if "SolveScope" in block:
        assert losses[-1] < losses[-2] < losses[-3]
        assert losses[-1] < 0.5  # where the variance is 6
