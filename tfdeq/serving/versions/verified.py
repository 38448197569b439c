"""Checks whether a report of `export.verify` is about the version that exists now."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from tfdeq.serving.versions import manifest

PASSED, FAILED = "passed", "failed"
CHANGED = "the version was changed after it was verified"
GONE = "the verified version is gone"


def standing(report: Mapping[str, Any], workdir: str | os.PathLike | None = None) -> str:
    """Describes whether a version passed, and whether it is still the one that was verified.

    Args:
        report: the report of `export.verify`.
        workdir: the run's folder, which may have been moved together with the version under export/.

    Returns:
        PASSED or FAILED, if it applies to the version as it is now; else a description of the problem.
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
