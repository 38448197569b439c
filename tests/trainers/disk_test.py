"""A folder that is read-only, or full at any moment of a run: one line of error, and resumption."""

import os
import pathlib
import shutil
import sys

import pytest

from tests.support import ending_cases as cases
from tests.support.disk_cases import MAY_NOT_MOUNT, put_on_a_disk
from tfdeq.programs.workdir import Curves

# what is being written -> the function that starts it, and which of its calls
MOMENTS = {
    "the folder": ("tfdeq.training.experiment:check_configuration", 1),
    "environment.json": ("tfdeq.training.records.environment:record", 1),
    "residuals.json": ("tfdeq.training.evaluation:Evaluator.residual_trace", 1),
    "curves.jsonl": ("tfdeq.programs.workdir:Curves.append", 3),
    "a checkpoint": ("tfdeq.training.records.checkpoints:Checkpoints.save", 1),
    "the best checkpoint": ("tfdeq.training.records.run_state:RunState.save_if_best", 1),
    "TensorBoard's file": ("tfdeq.training.records.progress:Progress.scalars", 5),
    "model.keras": ("tfdeq.training.evaluation:Evaluator.results", 1),
    "a picture": ("tfdeq.training.report.pictures:_save", 1),
    "metrics.json": ("tfdeq.training.records.progress:Progress.close", 1),
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.parametrize(
    ("what", "how"),
    [
        pytest.param(what, how, id=f"{how}, {what}")
        # A disk with files that are being written does not become read-only.
        for what, how in [*((one, "full") for one in MOMENTS), ("the folder", "read-only")]
    ],
)
def test_one_line_says_what_cannot_be_written(tmp_path, what, how):
    cases.write_text(tmp_path)
    hook = (put_on_a_disk, str(tmp_path), *MOMENTS[what], how)
    status, said = cases.run(tmp_path, "disk/run", hook=hook, log="said.txt")
    if status == MAY_NOT_MOUNT:
        pytest.skip("this process may not mount a tmpfs")
    reason = "No space left on device" if how == "full" else "Read-only file system"
    errors = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert status == 1, said
    assert len(errors) == 1, said
    assert reason in errors[0]
    assert "be written" in errors[0]
    assert "Free some space" in errors[0]
    assert "Traceback" not in said
    left = tmp_path / "left"
    if how == "full":  # on a read-only disk nothing can be removed either
        assert not cases.leftovers(left)
    curves = left / "run" / "curves.jsonl"
    assert not curves.exists() or curves.read_text()[-1:] in ("", "\n")
    # With free space again, the same command continues.
    shutil.rmtree(tmp_path / "disk")
    (left / "filler").unlink(missing_ok=True)
    left.rename(tmp_path / "disk")
    status, said = cases.run(tmp_path, "disk/run", log="said.txt")
    assert status == 0, said


def test_a_row_that_does_not_fit_leaves_no_half_of_it(tmp_path, monkeypatch):
    path = tmp_path / "curves.jsonl"
    curves = Curves(str(path))
    curves.append({"step": 1})
    whole = path.read_text()
    original = os.truncate
    cut = []

    def half(*arguments, **options):
        file = open(*arguments, **options)  # noqa: SIM115

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def write(self, text):
                file.write(text[: len(text) // 2])
                file.flush()
                raise OSError(28, "No space left on device")

        return Full()

    monkeypatch.setattr(os, "truncate", lambda *a: (cut.append(a), original(*a)))
    monkeypatch.setattr("tfdeq.programs.workdir.open", half, raising=False)
    with pytest.raises(OSError, match="curves.jsonl cannot be written: No space left on device"):
        curves.append({"step": 2})
    assert cut
    assert path.read_text() == whole


def test_a_workdir_below_a_file(tmp_path):
    from tfdeq.programs.workdir import locked

    (tmp_path / "file").write_text("")
    folder = pathlib.Path(tmp_path / "file" / "run")
    with (
        pytest.raises(
            OSError, match=r"--workdir=.*run cannot be written: Not a directory.*another"
        ),
        locked(str(folder)),
    ):
        pass
