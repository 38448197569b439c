"""SIGTERM and Ctrl-C at any moment of the real program: status 75, and then the same results."""

import pkgutil
import signal

import pytest

from tests.support import ending_cases as cases
from tfdeq.programs.preemption import EXIT_CODE

# name -> the function in which it happens, which of its calls, the program's output
MOMENTS = {
    "data are read": ("trainers.language_model:load", 1, "from the last checkpoint"),
    "the model is built": (
        "tfdeq.training.text.language_model:make_model",
        1,
        "from the last checkpoint",
    ),
    "the folder is claimed": (
        "tfdeq.training.records.environment:describe",
        1,
        "from the last checkpoint",
    ),
    "the residual is traced": (
        "tfdeq.training.evaluation:Evaluator.residual_trace",
        1,
        "from the last",
    ),
    "a checkpoint is looked for": (
        "tfdeq.training.records.run_state:RunState.restore",
        1,
        "from the last",
    ),
    "before the first step": ("tfdeq.training.trainer:Trainer.batches", 1, "at step 0."),
    "the first step is traced": (
        "tfdeq.training.steps.training_step:TrainingStep._of_part",
        1,
        "at step 1.",
    ),
    "between steps": ("tfdeq.training.steps.training_step:TrainingStep.run", 4, "at step 4."),
    "an evaluation": ("tfdeq.training.evaluation:Evaluator.evaluate", 1, "at step 3."),
    "a checkpoint is written": ("tfdeq.training.records.run_state:RunState.save", 1, "at step 3."),
    "the last step": ("tfdeq.training.steps.training_step:TrainingStep.run", 6, "at step 6."),
    "the last evaluation": ("tfdeq.training.evaluation:Evaluator.evaluate", 2, "at step 6."),
    "the last checkpoint is written": (
        "tfdeq.training.records.run_state:RunState.save",
        3,
        "at step 6.",
    ),
    "the test": ("tfdeq.training.evaluation:Evaluator.results", 1, "from the last checkpoint"),
    "model.keras is written": ("zipfile:ZipFile.writestr", 1, "from the last checkpoint"),
    "pictures are drawn": (
        "tfdeq.training.report.pictures:_quality",
        1,
        "from the last checkpoint",
    ),
    "metrics.json is written": ("tfdeq.programs.workdir:_dump", 5, "from the last checkpoint"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("endings")
    cases.write_text(folder)
    status, said = cases.run(folder, "whole")
    assert status == 0, said
    return folder


def check_goes_on(folder, name):
    status, said = cases.run(folder, name)
    assert status == 0, said
    assert cases.results(folder / name) == cases.results(folder / "whole")
    assert not cases.leftovers(folder / name)


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_program_has_the_function(moment):
    assert callable(pkgutil.resolve_name(MOMENTS[moment][0]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        pytest.param(moment, number, id=f"{number.name}, {moment}")
        for moment in MOMENTS
        for number in (signal.SIGTERM, signal.SIGINT)
    ],
)
def test_ends_with_the_status_that_asks_to_be_run_again(folder, moment, number):
    place, call, said = MOMENTS[moment]
    name = f"{number.name}-{moment}".replace(" ", "_")
    status, output = cases.run(folder, name, hook=(cases.signal_at, place, call, number))
    assert status == EXIT_CODE, output
    assert said in output
    assert "Traceback" not in output
    assert "ignored" not in output  # "Exception ignored in"
    check_goes_on(folder, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [
        "tfdeq.training.steps.training_step:TrainingStep.run",
        "tfdeq.training.evaluation:Evaluator.evaluate",
    ],
)
def test_a_second_interrupt_ends_at_once(folder, place):
    name = f"twice_{place.split('.')[-1]}"
    hook = (cases.signal_at, place, 1, signal.SIGINT, signal.SIGINT)
    status, output = cases.run(folder, name, hook=hook)
    assert status == -signal.SIGINT
    assert "Traceback" not in output
    check_goes_on(folder, name)
