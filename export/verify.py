"""Verifies an exported version against the Keras model that it was made from.

    python -m export.verify --workdir=runs/quickstart --model=runs/quickstart/export/1

The version is loaded in two fresh processes that cannot import tfdeq: with tf.saved_model.load, and
in TensorFlow's C++ runtime without any TensorFlow Python. Both answer held-out text.
"""

import concurrent.futures
import os
import pathlib
import sys
import time
from typing import Any

import numpy as np
from absl import flags

from export import isolated, model_card
from export import language_model_checks as checks
from export.language_model_checks import Check
from export.saved_model import load_run
from tfdeq.models import LanguageModel
from trainers import data, program
from trainers.workdir import read_json, write_json

FLAGS = flags.FLAGS


def verify_language_model(
    model: LanguageModel, path: str | os.PathLike, stream: np.ndarray
) -> tuple[list[Check], dict[str, Any]]:
    """Asks a version in both runtimes and compares its answers with the Keras model's.

    Args:
        model: the model that the version was made from.
        path: the version folder.
        stream: [N] token ids of held-out text.

    Returns:
        The checks, and runtime -> facts of its process: how each blocked import failed, seconds.

    Raises:
        export.isolated.IsolationError: a process failed.
    """
    windows = checks.windows_of(stream, model.sequence_length)
    batches = checks.batch_requests(windows)
    cases = checks.neighbour_requests(windows, model.sequence_length)
    requests = [*batches, *(request for request, _ in cases), checks.dial_request(windows)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        started = {
            runtime: pool.submit(isolated.answer, path, requests, runtime)
            for runtime in isolated.RUNTIMES
        }
        answers = {runtime: future.result() for runtime, future in started.items()}
    found = []
    tolerance = model.equilibrium.solver.tolerance
    for runtime, answer in answers.items():
        outputs = answer.outputs
        middle = len(batches)
        found += [
            checks.check_against_model(model, batches, outputs[:middle], runtime),
            checks.check_neighbours(cases, outputs[middle:-1], tolerance, runtime),
            checks.check_dial(outputs[-1], bool(model.explicit_steps), runtime),
        ]
    return found, {runtime: answer.facts for runtime, answer in answers.items()}


def check_source(path: pathlib.Path, run_card: dict[str, Any]) -> Check:
    """Whether the version was made from the model file that it is compared with."""
    card = read_json(path / "assets.extra" / model_card.NAME) or {}
    made_from = card.get("source", {}).get("sha256")
    same = made_from == run_card["source"]["sha256"]
    text = "the model file's SHA-256 is the one in the model card"
    if not same:
        text = (
            f"the model card names {made_from}, the workdir's model.keras is "
            f"{run_card['source']['sha256']}. Export the model again, or verify against the "
            "workdir that the version was made from"
        )
    return Check("made from this model", same, text, {"sha256": made_from})


def held_out_text(
    config: dict[str, Any], vocabulary_size: int, prepared_dir: str | None
) -> tuple[np.ndarray, str]:
    """Returns the test split's tokens, and "" or a note that the text is not the trainer's."""
    if "dataset" not in config:
        raise ValueError(
            "config.json is missing or names no dataset; the trainer writes it beside model.keras."
        )
    loaded = data.load(
        config["dataset"],
        data_dir=config.get("data_dir"),
        files=config.get("files"),
        prepared_dir=prepared_dir,
    )
    if loaded.vocabulary_size != vocabulary_size:
        raise ValueError(
            f"The data set {config['dataset']!r} has {loaded.vocabulary_size:,} token ids, the model "
            f"{vocabulary_size:,}: config.json and model.keras are not of one run."
        )
    trained_on = config.get("data_fingerprint", loaded.fingerprint)
    note = "" if trained_on == loaded.fingerprint else "Not the text that the model was trained on."
    return loaded.test, note


def main() -> None:
    if not _verify(FLAGS.workdir, pathlib.Path(FLAGS.model), FLAGS.report):
        sys.exit(1)


def _verify(workdir: str, path: pathlib.Path, report: str | None) -> bool:
    started = time.perf_counter()
    if not (path / "saved_model.pb").is_file():
        raise FileNotFoundError(
            f"No SavedModel in {str(path)!r}. Name OUTPUT/VERSION of: "
            f"{program.command('export', 'saved_model')} --workdir={workdir} --output=OUTPUT"
        )
    model, card, _ = load_run(workdir)
    stream, note = held_out_text(card["flags"], model.vocabulary_size, FLAGS.prepared_dir)
    found = [check_source(path, card)]
    compared, facts = verify_language_model(model, path, stream)
    found += compared
    passed = all(check.passed for check in found)
    result = {
        "passed": passed,
        "model": str(path),
        "workdir": workdir,
        "dataset": card["dataset"],
        "note": note,
        "checks": [check._asdict() for check in found],
        "processes": facts,
        "seconds": round(time.perf_counter() - started, 1),
    }
    target = pathlib.Path(report or os.path.join(workdir, "export_report.json"))
    write_json(str(target), result)
    for line in _lines(result):
        print(line)
    print(f"Report: {target}")
    return passed


def _lines(result: dict[str, Any]) -> list[str]:
    lines = [
        f"Verifying {result['model']} on held-out {result['dataset']}. {result['note']}".strip()
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
    flags.DEFINE_string("workdir", None, "Folder that trainers.language_model wrote.")
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
