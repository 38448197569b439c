import pytest

from trainers import report
from trainers.workdir import write_json

ROW = {"bits_per_byte": 1.9, "residual": 5e-3, "steps": 6.0}
METRICS = {"test": {**ROW, "by_budget": {"1.0": ROW, "2.0": ROW}}}


def test_says_quality_places_and_next_steps(tmp_path):
    write_json(str(tmp_path / "metrics.json"), METRICS)
    (tmp_path / "export" / "1").mkdir(parents=True)
    (tmp_path / "export" / "1" / "saved_model.pb").write_bytes(b"")
    text = "\n".join(report.summary(str(tmp_path)))
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
