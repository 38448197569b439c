"""What a report of `export.verify` is worth now: whether it is of the version that lies there."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from tfdeq.serving.versions import manifest

PASSED, FAILED = "passed", "failed"
CHANGED = "the version was changed after it was verified"
GONE = "the verified version is gone"


def standing(report: Mapping[str, Any], workdir: str | os.PathLike | None = None) -> str:
    """Says in words whether a version passed, and whether it is still the one that was verified.

    Args:
        report: what `export.verify` wrote.
        workdir: the run's folder, which may have moved with the version in it, under export/.

    Returns:
        PASSED or FAILED, which hold for the version as it is now; else what is wrong.
    """
    named = report.get("model")
    if not isinstance(named, str) or not isinstance(report.get("digest"), str):
        return "the report is of an older release; verify the version again"
    path = pathlib.Path(named)
    if not path.is_dir() and workdir is not None:
        path = pathlib.Path(workdir, "export", path.name)
    if not path.is_dir():
        return GONE
    try:
        same = manifest.digest(path) == report["digest"] and not manifest.differences(path).text()
    except (OSError, manifest.ChangedVersionError):
        same = False
    if not same:
        return CHANGED
    return PASSED if report.get("passed") is True else FAILED
