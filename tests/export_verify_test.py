"""Verification: the real program on a version that is right, and the findings on ones that are not."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import tfdeq
from export import isolated, saved_model, verify
from export import language_model_checks as checks
from tfdeq.models import LanguageModel

ROOT = pathlib.Path(__file__).absolute().parent.parent
LENGTH = 12


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A trainer's folder with the version `export/1`, and one of another model, `export/2`."""
    folder = tmp_path_factory.mktemp("run")
    for seed, name in ((4, "other.keras"), (3, "model.keras")):
        keras.utils.set_random_seed(seed)
        model = LanguageModel(
            256, LENGTH, width=16, heads=2, recurrent_scale=1.0, solver=tfdeq.Anderson(max_steps=40)
        )
        model.build((None, LENGTH))
        # Contracts well, as after training: an iteration that does not settle amplifies rounding.
        for layer in (model.cell.attention_output, model.cell.contract):
            layer.kernel.assign(0.3 * layer.kernel)
        model.save(folder / name)
    for place in range(3):
        text = f"Held-out text number {place}, long enough for a window or two.\n" * 20
        (folder / f"{place}.txt").write_text(text)
    config = {"dataset": "text", "data_dir": None, "files": str(folder / "*.txt")}
    (folder / "config.json").write_text(json.dumps(config))
    _, card, _ = saved_model.load_run(folder)
    saved_model.export_language_model(model, folder / "export", version=1, card=card)
    other = keras.models.load_model(folder / "other.keras")
    saved_model.export_language_model(other, folder / "export", version=2)
    return folder


def test_the_program_passes_a_version_that_is_right(workdir, tmp_path):
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "export.verify", f"--workdir={workdir}"),
            *(f"--model={workdir / 'export' / '1'}", f"--prepared_dir={tmp_path}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    report = json.loads((workdir / "export_report.json").read_text())
    assert report["passed"]
    assert report["processes"]["c"]["imported"] == []
    assert set(report["processes"]["c"]["blocked"]) >= {"tfdeq", "tensorflow"}
    assert "tfdeq" in report["processes"]["tensorflow"]["blocked"]
    assert len(report["checks"]) == 7
    assert finished.stdout.count("ok    ") == 7
    for check in report["checks"]:
        assert check["values"].get("largest_difference", 0.0) <= 1e-5
    assert "The version answers as the Keras model does" in finished.stdout


def test_a_version_of_another_model_is_found(workdir, monkeypatch):
    model, card, _ = saved_model.load_run(workdir)
    path = workdir / "export" / "2"
    assert not verify.check_source(path, card).passed
    monkeypatch.setattr(isolated, "RUNTIMES", {"c": isolated.RUNTIMES["c"]})
    stream = np.frombuffer((workdir / "0.txt").read_bytes(), np.uint8)
    found, _ = verify.verify_language_model(model, path, stream)
    assert [check.passed for check in found] == [False, True, True]
    assert "log probabilities differ" in found[0].text or "steps" in found[0].text


def flags(monkeypatch, **values):
    defaults = {"prepared_dir": None, "report": None}
    monkeypatch.setattr(verify, "FLAGS", type("Flags", (), {**defaults, **values}))


def test_missing_version_names_the_command(workdir, monkeypatch):
    flags(monkeypatch, workdir=str(workdir), model=str(workdir / "export" / "9"))
    with pytest.raises(FileNotFoundError, match=r"python -m export\.saved_model --workdir="):
        verify.main()


def test_config_without_a_data_set():
    with pytest.raises(ValueError, match=r"config\.json is missing or names no dataset"):
        verify.held_out_text({}, 256, None)


def dial(residuals, status=0):
    shape = (checks.DIAL_WINDOWS, len(checks.TOLERANCES))
    return {
        "residual": np.broadcast_to(np.float32(residuals), shape).ravel(),
        "steps": np.broadcast_to(np.arange(5) + 3, shape).ravel(),
        "status": np.full(shape, status).ravel(),
    }


@pytest.mark.parametrize(
    ("residuals", "status", "finding"),
    [
        ([9e-2, 9e-3, 9e-4, 9e-5, 9e-6], 0, None),
        ([9e-2, 2e-2, 9e-4, 9e-5, 9e-6], 0, "3 residuals above their tolerance"),
        ([9e-2, 9e-3, 5e-2, 9e-5, 9e-6], 1, "3 residuals grew"),
        ([np.inf] * 5, 1, "not finite"),
        ([0.2] * 5, 1, "no example met the tolerance"),
    ],
)
def test_findings_of_the_dial(residuals, status, finding):
    check = checks.check_dial(dial(residuals, status), explicit=False, runtime="c")
    assert check.passed == (finding is None)
    if finding:
        assert finding in check.text


def solved(log_probability, steps, residual, status=0):
    return {
        "log_probabilities": np.float32([log_probability, -1.0]),
        "steps": np.int32(steps),
        "residual": np.float32(residual),
        "status": np.int32(status),
    }


@pytest.mark.parametrize(
    ("answer", "passed", "near"),
    [
        (solved(-2.0, 5, 8e-4), True, 0),
        (solved(-2.00005, 5, 8e-4), True, 0),
        (solved(-2.001, 5, 8e-4), False, 0),
        (solved(np.nan, 5, 8e-4), False, 0),
        (solved(-2.0, 6, 3e-4), False, 0),
        (solved(-2.001, 4, 0.9999e-3), True, 1),  # the tolerance is 1e-3
        (solved(-2.001, 4, 0.9e-3), False, 0),
        (solved(-2.0, 5, 8e-4, status=1), False, 0),
    ],
)
def test_comparison_of_two_answers(answer, passed, near):
    reference = solved(-2.0, 5, 8e-4)
    pairs = [("probe", answer, reference), ("equal", reference, reference)]
    check = checks._compare("test", pairs, tolerance=1e-3)
    assert check.passed == passed
    assert len(check.values["near"]) == near
