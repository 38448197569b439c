import subprocess
import sys

import pytest

from trainers import report
from trainers.workdir import write_json

ROW = {"bits_per_byte": 1.9, "residual": 5e-3, "steps": 6.0}
METRICS = {"test": {**ROW, "by_budget": {"1.0": ROW, "2.0": ROW}}}


def test_says_quality_places_and_next_steps(tmp_path):
    write_json(str(tmp_path / "metrics.json"), METRICS)
    (tmp_path / "export" / "1").mkdir(parents=True)
    (tmp_path / "export" / "1" / "saved_model.pb").write_bytes(b"")
    text = "\n".join(report.summary(str(tmp_path)) + report.next_steps(str(tmp_path)))
    assert "Held-out bits per byte: 1.900" in text
    assert str(tmp_path / "export" / "1") in text
    assert "tensorboard --logdir" in text
    assert "-m trainers.language_model --dataset=text" in text


def test_compares_with_the_baseline(tmp_path):
    baseline = {"name": "1 explicit application", **ROW, "bits_per_byte": 2.05}
    write_json(str(tmp_path / "metrics.json"), {**METRICS, "baseline": baseline})
    assert any("better by 0.150" in line for line in report.summary(str(tmp_path)))


def test_no_run_is_an_error_that_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python\S* -m trainers\.language_model"):
        report.summary(str(tmp_path))


@pytest.mark.parametrize(
    ("test", "line"),
    [
        (
            {"bits_per_word": 7.0, "perplexity": 128.0, "residual": 5e-3, "steps": 6.0},
            "Held-out bits per word: 7.000, perplexity: 128.000 "
            "(relative residual 5.0e-03 after 6.0 steps on average)",
        ),
        ({"accuracy": 0.9}, "Held-out accuracy: 0.900"),
        ({}, "metrics.json holds no figures of held-out data."),
    ],
)
def test_figures_have_any_name(tmp_path, test, line):
    write_json(str(tmp_path / "metrics.json"), {"test": test})
    assert line in report.summary(str(tmp_path))


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "trainers.report", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_program_tells_every_run_and_writes_one_page(tmp_path):
    for name in ("a/run", "b/run"):
        write_json(str(tmp_path / name / "metrics.json"), METRICS)
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "curves.jsonl").write_text('{"step": 20, "loss": 2.0}\n')
    folders = [str(tmp_path / name) for name in ("a/run", "b/run", "training")]
    result = run(*folders)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.count("Held-out bits per byte: 1.900") == 2
    assert result.stdout.count("What to do next:") == 1
    assert f"{folders[2]}: in progress at step 20" in result.stdout
    page = tmp_path / "a" / "run" / "report.html"
    assert f"The page, for any browser: {page}" in result.stdout
    text = page.read_text(encoding="utf-8")
    assert "<title>Training report: a/run, b/run, training</title>" in text
    assert [path.name for path in page.parent.iterdir() if "partial" in path.name] == []


def test_output_names_the_page(tmp_path):
    write_json(str(tmp_path / "metrics.json"), METRICS)
    output = tmp_path / "pages" / "page.html"
    report.write_page([str(tmp_path)], str(output))
    assert output.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    with pytest.raises(IsADirectoryError, match=r"is a folder\. Name a file"):
        report.write_page([str(tmp_path)], str(tmp_path))


def test_no_folder_is_a_usage_error():
    result = run()
    assert result.returncode != 0
    assert "No folder of a run was given. Name one or more" in result.stdout + result.stderr


def test_a_folder_without_a_run_is_one_line(tmp_path):
    result = run(str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.startswith(f"Error: {tmp_path} holds neither metrics.json nor curves")
    assert list(tmp_path.iterdir()) == []
