"""The environment of a run: versions, commit, devices and the command line."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from typing import Any

import tensorflow as tf

from tfdeq.programs.commands import ROOT
from tfdeq.programs.workdir import read_json, write_json

NAME = "environment.json"
_PACKAGES = ("tensorflow", "keras", "numpy", "tensorflow-datasets", "absl-py")


def describe() -> dict[str, Any]:
    """Returns the time (UTC), command, Python, packages, commit of the sources and devices."""
    devices = [device.device_type for device in tf.config.list_logical_devices()]
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "commit": commit(ROOT),
        "devices": {kind: devices.count(kind) for kind in sorted(set(devices))},
    }


def record(workdir: str) -> None:
    """Adds this start to the run's environment.json; a resumed run has one entry for each start."""
    path = os.path.join(workdir, NAME)
    starts = (read_json(path) or {}).get("starts", [])
    write_json(path, {"starts": [*starts, describe()]})


def commit(folder: str) -> dict[str, Any] | None:
    """Returns the Git commit of a folder's checkout, and whether files differ; None without a checkout."""
    head = _git(folder, "rev-parse", "HEAD")
    if head is None:
        return None
    return {"hash": head, "changed": bool(_git(folder, "status", "--porcelain"))}


def _git(folder: str, *arguments: str) -> str | None:
    try:
        finished = subprocess.run(
            ["git", "-C", folder, *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return finished.stdout.strip() if finished.returncode == 0 else None
