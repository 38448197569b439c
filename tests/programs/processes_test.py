import os
import signal
import textwrap
import time

import pytest

from tfdeq.programs import processes
from tfdeq.programs.preemption import EXIT_CODE, Preempted


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A module `toy_run` that writes its flags to WORKDIR, or fails on request."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "toy_run.py").write_text(
        textwrap.dedent(
            """
            import json, os, sys
            flags = dict(argument[2:].split("=") for argument in sys.argv[1:])
            print("seen", flags)
            if flags.get("fail"):
                sys.exit(3)
            if flags.get("status"):
                sys.exit(int(flags["status"]))
            if flags.get("signal"):
                os.kill(os.getpid(), int(flags["signal"]))
            os.makedirs(flags["workdir"])
            with open(os.path.join(flags["workdir"], "flags.json"), "w") as file:
                json.dump({**flags, "threads": os.environ["TF_NUM_INTRAOP_THREADS"]}, file)
            """
        )
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return "toy_run"


@pytest.mark.parametrize("parallel", [1, 2])
def test_runs_every_job_with_its_flags(program, tmp_path, parallel):
    with processes.Runs(program, parallel=parallel) as runs:
        for seed in range(3):
            runs.start(str(tmp_path / "runs" / str(seed)), {"seed": seed, "files": None})
        runs.wait()
    for seed in range(3):
        text = (tmp_path / "runs" / str(seed) / "flags.json").read_text()
        assert f'"seed": "{seed}"' in text
        assert "files" not in text  # None: the program's own default
        assert f'"threads": "{max(1, os.cpu_count() // parallel)}"' in text
        assert "seen" in (tmp_path / "runs" / f"{seed}.log").read_text()


def test_a_failed_run_is_named_with_its_log(program, tmp_path):
    with processes.Runs(program) as runs:
        runs.start(str(tmp_path / "bad"), {"fail": 1})
        with pytest.raises(processes.RunFailed, match=r"failed with status 3; see .*bad\.log"):
            runs.wait()


def test_runs_that_may_fail(program, tmp_path, capsys):
    with processes.Runs(program) as runs:
        runs.start(str(tmp_path / "bad"), {"fail": 1})
        runs.start(str(tmp_path / "good"), {})
        runs.wait(may_fail=True)
    assert "bad failed with status 3" in capsys.readouterr().out
    assert (tmp_path / "good" / "flags.json").exists()


@pytest.mark.parametrize("how", [{"status": EXIT_CODE}, {"signal": int(signal.SIGTERM)}])
def test_a_run_that_was_asked_to_end_has_the_program_be_run_again(program, tmp_path, capsys, how):
    with processes.Runs(program) as runs:
        runs.start(str(tmp_path / "asked"), how)
        runs.start(str(tmp_path / "other"), {})
        with pytest.raises(Preempted) as caught:
            runs.wait()
    assert caught.value.code == EXIT_CODE
    said = capsys.readouterr().out
    assert f"{tmp_path}/asked was stopped on request. Run the same command again" in said
    assert f"Finished the run in {tmp_path}/other" in said


def test_a_failure_counts_more_than_a_request(program, tmp_path):
    with processes.Runs(program) as runs:
        runs.start(str(tmp_path / "asked"), {"status": EXIT_CODE})
        runs.start(str(tmp_path / "killed"), {"signal": int(signal.SIGKILL)})
        with pytest.raises(processes.RunFailed, match=r"status -9; see .*killed\.log"):
            runs.wait()


def test_a_log_that_cannot_be_written(program, tmp_path):
    (tmp_path / "file").write_text("")
    with processes.Runs(program) as runs:
        runs.start(str(tmp_path / "file" / "run"), {})
        with pytest.raises(OSError, match=r"run\.log cannot be written: .*another --workdir"):
            runs.wait()


def test_an_error_ends_what_still_runs(tmp_path, monkeypatch):
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "endless_run.py").write_text("import time\nprint('on', flush=True)\ntime.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    runs = processes.Runs("endless_run")

    def leave_by_an_interrupt():
        with runs:
            runs.start(str(tmp_path / "run"), {})
            while not runs._processes:
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave_by_an_interrupt()
    assert runs._processes[0].wait(timeout=30) != 0


def test_cores_are_shared_and_never_none():
    assert processes.cores_per_process(10**6) == 1


@pytest.mark.slow
def test_a_package_of_the_same_name_in_the_current_folder_is_not_run(tmp_path, monkeypatch):
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "__init__.py").touch()
    (tmp_path / "trainers" / "language_model.py").write_text("print('another program ran')")
    monkeypatch.chdir(tmp_path)
    with processes.Runs("trainers.language_model") as runs:
        runs.start("run", {"help": True})
        runs.wait()
    log = (tmp_path / "run.log").read_text()
    assert "another program ran" not in log
    assert "--workdir=TEXT" in log
