import shutil
import subprocess
import sys
import types

import pytest
from absl import app

from tests.support.shell import own_lines
from tfdeq.programs.workdir import write_json
from tfdeq.serving.versions import manifest
from tfdeq.training.report import summary
from trainers import report

ROW = {"bits_per_byte": 1.9, "residual": 5e-3, "steps": 6.0}
METRICS = {"test": {**ROW, "by_budget": {"1.0": ROW, "2.0": ROW}}}


def test_says_quality_places_and_next_steps(tmp_path):
    write_json(str(tmp_path / "metrics.json"), METRICS)
    (tmp_path / "export" / "1").mkdir(parents=True)
    (tmp_path / "export" / "1" / "saved_model.pb").write_bytes(b"")
    text = "\n".join(summary.summary(str(tmp_path)) + summary.next_steps(str(tmp_path)))
    assert "Test bits per byte: 1.900" in text
    assert str(tmp_path / "export" / "1") in text
    assert "tensorboard --logdir" in text
    assert "-m trainers.language_model --dataset=text" in text


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        (2.05, "(the equilibrium is better by 0.150 bits per byte)"),
        (1.89, "(the baseline is better by 0.010 bits per byte)"),
        (1.9001, "(the equilibrium is as good)"),
    ],
)
def test_says_which_is_better(tmp_path, bits, words):
    baseline = {"name": "1 explicit application", **ROW, "bits_per_byte": bits}
    write_json(str(tmp_path / "metrics.json"), {**METRICS, "baseline": baseline})
    assert any(words in line for line in summary.summary(str(tmp_path)))


def test_says_the_standard_error_and_of_what_it_is(tmp_path):
    test = {**METRICS["test"], "standard_error": 0.0123, "examples": 3653, "tokens": 467584}
    write_json(str(tmp_path / "metrics.json"), {"test": test})
    lines = summary.summary(str(tmp_path))
    assert (
        "  standard error of the bits per byte: 0.012, over 3,653 examples of 467,584 tokens in all"
    ) in lines
    assert not any("examples:" in line for line in lines)  # not a figure of quality


def test_names_no_export_that_is_not_there(tmp_path):
    """First the command that makes the export, then the one that verifies it, then the one that serves it."""
    write_json(str(tmp_path / "metrics.json"), METRICS)
    write_json(str(tmp_path / "config.json"), {"dataset": "text"})

    def said():
        return [*summary.summary(str(tmp_path)), *summary.next_steps(str(tmp_path))]

    export = tmp_path / "export"
    (command,) = [line for line in said() if str(export) in line]
    assert command.startswith("  export: ")
    assert command.endswith(f" -m export.saved_model --workdir={tmp_path} --output={export}")
    for version in ("9", "10"):
        (export / version).mkdir(parents=True)
        (export / version / "saved_model.pb").write_bytes(b"")
    found = [line for line in said() if str(export) in line]
    assert [line.split()[0] for line in found] == [
        *(str(export / "9"), str(export / "10")),
        *("verify:", "serve:"),
    ]
    assert found[2].endswith(f"--model={export / '10'}")
    write_json(str(tmp_path / "export_report.json"), {})
    assert any("older release; verify the version again" in line for line in said())
    assert any(line.startswith("  verify:") for line in said())


def test_says_what_a_verification_is_worth_now(tmp_path):
    """A report applies to one version at that time, not to later files in its place."""
    write_json(str(tmp_path / "metrics.json"), METRICS)
    version = tmp_path / "export" / "1"
    (version / "assets.extra").mkdir(parents=True)
    (version / "saved_model.pb").write_bytes(b"graph")
    manifest.write(version)
    report_of = {"passed": True, "model": str(version), "digest": manifest.digest(version)}
    write_json(str(tmp_path / "export_report.json"), report_of)

    def said():
        lines = [*summary.summary(str(tmp_path)), *summary.next_steps(str(tmp_path))]
        (verdict,) = [line for line in lines if "what its verification found" in line]
        return verdict, any(line.startswith("  verify:") for line in lines)

    verdict, again = said()
    assert verdict.endswith("(what its verification found: passed)")
    assert not again
    (version / "saved_model.pb").write_bytes(b"another graph")
    for _ in range(2):
        verdict, again = said()
        assert "the version was changed after it was verified" in verdict
        assert again
        manifest.write(version)  # like another export with the same number
    shutil.rmtree(version)
    assert "the verified version is gone" in said()[0]


def test_a_run_without_a_text_is_exported_without(tmp_path):
    write_json(str(tmp_path / "config.json"), {"train_steps": 5})
    assert summary.next_steps(str(tmp_path))[-1].endswith("/export")


def test_no_run_is_an_error_that_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python\S* -m trainers\.language_model"):
        summary.summary(str(tmp_path))


@pytest.mark.parametrize(
    ("test", "line"),
    [
        (
            {"bits_per_word": 7.0, "perplexity": 128.0, "residual": 5e-3, "steps": 6.0},
            "Test bits per word: 7.000, perplexity: 128.000 "
            "(relative residual 5.0e-03 after 6.0 steps on average)",
        ),
        ({"accuracy": 0.9}, "Test accuracy: 0.900"),
        ({}, "metrics.json holds no test figures."),
    ],
)
def test_figures_have_any_name(tmp_path, test, line):
    write_json(str(tmp_path / "metrics.json"), {"test": test})
    assert line in summary.summary(str(tmp_path))


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "trainers.report", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_the_program_tells_every_run_and_writes_one_page(tmp_path):
    for name in ("a/run", "b/run"):
        write_json(str(tmp_path / name / "metrics.json"), METRICS)
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "curves.jsonl").write_text('{"step": 20, "loss": 2.0}\n')
    folders = [str(tmp_path / name) for name in ("a/run", "b/run", "training")]
    result = run(*folders)
    assert result.returncode == 0, own_lines(result.stderr)
    assert own_lines(result.stderr) == ""
    assert result.stdout.count("Test bits per byte: 1.900") == 2
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
    summary.write_page([str(tmp_path)], str(output))
    assert output.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    with pytest.raises(IsADirectoryError, match=r"is a folder\. Name a file"):
        summary.write_page([str(tmp_path)], str(tmp_path))


def test_no_folder_is_a_usage_error():
    with pytest.raises(app.UsageError, match="No folder of a run was given. Name one or more"):
        report.main([])


def test_a_folder_without_a_run_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "FLAGS", types.SimpleNamespace(output=None))
    with pytest.raises(
        FileNotFoundError, match=f"{tmp_path} holds neither metrics.json nor curves"
    ):
        report.main([str(tmp_path)])
    assert list(tmp_path.iterdir()) == []
