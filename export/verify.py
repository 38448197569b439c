"""Verifies an exported version against the Keras model that it was made from.

    python -m export.verify --workdir=runs/quickstart --model=runs/quickstart/export/1

The version is loaded in two fresh processes that cannot import tfdeq: with tf.saved_model.load, and
in TensorFlow's C++ runtime without any TensorFlow Python. Both answer inputs of the run's test data.
"""

import os
import pathlib
import sys
import time
from typing import Any

from absl import flags

from tfdeq.programs import commands, program
from tfdeq.programs.workdir import read_json, write_json
from tfdeq.serving.verification.verify import verify_run
from tfdeq.serving.versions import manifest, verified

FLAGS = flags.FLAGS


def main() -> None:
    if not _verify(FLAGS.workdir, pathlib.Path(FLAGS.model), FLAGS.report):
        sys.exit(1)


def _verify(workdir: str, path: pathlib.Path, report: str | None) -> bool:
    started = time.perf_counter()
    if not (path / "saved_model.pb").is_file():
        raise FileNotFoundError(
            f"No SavedModel in {str(path)!r}. Name OUTPUT/VERSION of: "
            f"{commands.command('export.saved_model')} --workdir={workdir} --output=OUTPUT"
        )
    target = pathlib.Path(report or os.path.join(workdir, "export_report.json"))
    _say_earlier(target, workdir)
    digest = _digest(path)  # of the verified files, even if they change in the meantime
    compared, facts, run = verify_run(workdir, path, FLAGS.prepared_dir)
    passed = all(check.passed for check in compared)
    result = {
        "passed": passed,
        "model": str(path.absolute()),
        "digest": digest,
        "workdir": workdir,
        "dataset": run.card["dataset"],
        "note": run.note,
        "checks": [check._asdict() for check in compared],
        "processes": facts,
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(str(target), result)
    for line in _lines(result):
        print(line)
    print(f"Report: {target}")
    return passed


def _digest(path: pathlib.Path) -> str | None:
    """Returns the version's digest; None for an invalid manifest, which the checks report."""
    try:
        return manifest.digest(path)
    except manifest.ChangedVersionError:
        return None


def _say_earlier(target: pathlib.Path, workdir: str) -> None:
    """Prints why an earlier report no longer applies to its version."""
    try:
        earlier = read_json(target)
    except ValueError:
        return
    if earlier and earlier.get("passed") is True:
        standing = verified.standing(earlier, workdir)
        if standing != verified.PASSED:
            print(f"{target} says that {earlier.get('model')} passed, but {standing}.")


def _lines(result: dict[str, Any]) -> list[str]:
    lines = [
        f"Verifying {result['model']} on the test data of {result['dataset'] or result['workdir']}. "
        f"{result['note']}".strip()
    ]
    for runtime, facts in result["processes"].items():
        refused = ", ".join(facts["blocked"])
        lines.append(
            f"      {runtime}: a process that cannot import {refused}; loaded in "
            f"{facts['load_seconds']:.1f} s, answered in {facts['run_seconds']:.1f} s"
        )
    for check in result["checks"]:
        lines.append(f"{'ok  ' if check['passed'] else 'FAIL'}  {check['name']}: {check['text']}")
    verdict = "answers as the Keras model does" if result["passed"] else "must not be served"
    lines.append(f"The version {verdict} ({result['seconds']} s).")
    return lines


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder that a trainer wrote.")
    flags.DEFINE_string("model", None, "The version folder to verify: OUTPUT/VERSION.")
    flags.DEFINE_string("report", None, "JSON to write. Default: WORKDIR/export_report.json.")
    flags.DEFINE_string(
        "prepared_dir", None, "Where TFDS keeps prepared copies. Default: as in the trainer."
    )
    flags.mark_flags_as_required(["workdir", "model"])


def run() -> None:
    """Entry point of the console script."""
    define_flags()
    program.run(main)


if __name__ == "__main__":
    run()
