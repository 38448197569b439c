"""Workers with different clocks, scores and flags: the chief decides, and all of them do the same."""

import pytest

from tests.support import worker_cases as cases

# A clock that jumps 1.5 s ahead after its first reading.
CLOCK = """
import time, types
from tfdeq.training.records import run_state
looks = []
def monotonic():
    looks.append(0)
    return time.monotonic() + 1.5 * (len(looks) > 1)
run_state.time = types.SimpleNamespace(monotonic=monotonic)
"""
# Every evaluation is better than the previous one, independent of the chief.
SCORES = """
from tfdeq.training.evaluation import Evaluator
evaluate, count = Evaluator.evaluate, []
def better(self, *arguments):
    count.append(0)
    return {**evaluate(self, *arguments), "bits_per_byte": -float(len(count))}
Evaluator.evaluate = better
"""
LONG = ("--train_steps=1000", "--evaluate_every=1000", "--log_every=100", "--inspect_every=0",
        "--nojit_compile", "--checkpoint_every=100000")  # fmt: skip
SHORT = ("--train_steps=40", "--evaluate_every=4", "--log_every=2", "--inspect_every=20",
         "--nojit_compile", "--checkpoint_every=10")  # fmt: skip


def check_same(found, expected):
    # Two processes add in a varying order, so the results are not equal bit for bit.
    assert cases.losses(found) == pytest.approx(cases.losses(expected), rel=1e-5)
    assert found["test"]["bits_per_byte"] == pytest.approx(
        expected["test"]["bits_per_byte"], rel=1e-5
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clocks")
    cases.write_text(folder)
    return folder


@pytest.fixture(scope="module")
def untimed(folder):
    cases.finish(*cases.start_workers(2, folder, folder / "untimed", *LONG))
    return cases.read_metrics(folder / "untimed")


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [0, 1])
def test_a_thousand_steps_with_clocks_apart(folder, untimed, ahead):
    workdir = folder / f"ahead_{ahead}"
    flags = (*LONG, "--checkpoint_minutes=0.05")
    cases.finish(*cases.start_workers(2, folder, workdir, *flags, before={ahead: CLOCK}))
    check_same(cases.read_metrics(workdir), untimed)
    assert len(list((workdir / "checkpoints").glob("ckpt-*.index"))) >= 2


@pytest.mark.slow
def test_scores_and_clocks_of_its_own(folder):
    cases.finish(*cases.start_workers(2, folder, folder / "same", *SHORT))
    flags = (*SHORT, "--checkpoint_minutes=0.01")
    workers = cases.start_workers(2, folder, folder / "own", *flags, before={1: CLOCK + SCORES})
    cases.finish(*workers)
    found, expected = (cases.read_metrics(folder / name) for name in ("own", "same"))
    check_same(found, expected)
    assert found["train"]["best"] == pytest.approx(expected["train"]["best"], rel=1e-5)


@pytest.mark.slow
def test_another_flag_in_one_worker_is_refused(folder):
    other = 'import sys\nsys.argv.append("--log_every=3")'
    chief, worker = cases.start_workers(2, folder, folder / "flags", *SHORT, before={1: other})
    try:
        said = worker.communicate(timeout=120)[0]
        assert worker.returncode == 1
        assert "Error: This worker's flags or data are not those of the first worker" in said
        assert "Traceback" not in said
        said = chief.communicate(timeout=120)[0]
        assert chief.returncode == 75, said
    finally:
        cases.end(chief, worker)
