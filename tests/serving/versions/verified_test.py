"""Whether an earlier report applies to the current version."""

import shutil

import pytest

from tfdeq.serving.versions import manifest, verified


@pytest.fixture
def version(tmp_path):
    path = tmp_path / "export" / "1"
    (path / "assets.extra").mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(b"graph")
    manifest.write(path)
    return path


def report_of(version, passed=True):
    return {"passed": passed, "model": str(version), "digest": manifest.digest(version)}


def test_a_report_holds_for_the_version_that_was_verified(version, tmp_path):
    assert verified.standing(report_of(version)) == "passed"
    assert verified.standing(report_of(version, passed=False)) == "failed"
    moved = tmp_path / "moved"
    report = report_of(version)
    shutil.move(tmp_path / "export", moved / "export")
    assert verified.standing(report, moved) == "passed"


@pytest.mark.parametrize("resealed", [False, True])
@pytest.mark.parametrize("change", ["changed", "added", "card"])
def test_a_version_that_was_changed(version, change, resealed):
    report = report_of(version)
    name = {"changed": "saved_model.pb", "added": "more", "card": "assets.extra/manifest.json"}
    (version / name[change]).write_text("other")
    if resealed:
        manifest.write(version)
    expected = "passed" if (change, resealed) == ("card", True) else verified.CHANGED
    assert verified.standing(report) == expected


def test_a_version_that_is_gone(version, tmp_path):
    report = report_of(version)
    shutil.rmtree(version)
    for workdir in (None, tmp_path):
        assert verified.standing(report, workdir) == "the verified version is gone"


@pytest.mark.parametrize(
    "report", [{}, {"passed": True}, {"passed": True, "model": 3, "digest": 4}]
)
def test_a_report_of_an_older_release(report):
    assert "verify the version again" in verified.standing(report)
