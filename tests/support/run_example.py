"""Runs an example in a process of its own, as a reader would."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).absolute().parents[2]


def run_example(module: str, folder: pathlib.Path) -> dict[str, Any]:
    """Returns the result of main(folder) of an example, after a round trip through JSON.

    A process of its own, since examples measure memory and set seeds.

    Args:
        module: dotted name, such as "examples.sinkhorn".
        folder: where its picture goes. It must be there afterwards.
    """
    program = (
        "import importlib, json, sys; "
        "result = importlib.import_module(sys.argv[1]).main(sys.argv[2]); "
        "print(); print(json.dumps(result))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, module, str(folder)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-4000:]
    picture = folder / f"{module.split('.')[-1]}.png"
    assert picture.read_bytes().startswith(b"\x89PNG"), picture
    return json.loads(finished.stdout.splitlines()[-1])
