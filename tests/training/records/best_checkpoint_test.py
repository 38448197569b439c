"""The final weights of a run: the best evaluated ones, or the last."""

import keras
import numpy as np
import pytest

from tests.support.cases import fast
from tests.support.checkpoint_cases import saved_numbers
from tests.support.trainer_cases import CONFIG, make_task, make_trainer, weights_of
from tfdeq.programs.workdir import Curves
from tfdeq.training import experiment
from tfdeq.training.experiment import Experiment

BEST = {**CONFIG, "keep": "best"}
EVERY = {**BEST, "evaluate_every": 1}


def error(model):
    """Returns the distance of the weights from the answer, which training approaches and then leaves."""
    return float(np.abs(model.weights[0].numpy() - 0.3).max())


def worse_from(first):
    """Pushes the weights away from a step on."""

    def push(step, model):
        if step >= first:
            model.weights[0].assign_add(np.full([2, 1], 0.5))

    return push


@pytest.mark.parametrize("ema", fast([0.6], [0.0, 0.6]))
def test_the_final_model_is_the_one_that_was_measured_best(tmp_path, ema):
    config = {**EVERY, "ema": ema}
    trainer, model = make_trainer(
        tmp_path / "best", config=config, evaluate=error, at_step=worse_from(6)
    )
    columns = trainer.train()
    measured = columns["validation_error"]
    best = min(score for score in measured if score is not None)
    assert error(model) == best == columns["best"]["score"]
    assert columns["kept_step"] == columns["best"]["step"] < 12
    assert saved_numbers(tmp_path / "best" / "checkpoints" / "best") == [columns["kept_step"]]

    last, model = make_trainer(
        tmp_path / "last",
        config={**config, "keep": "last"},
        evaluate=error,
        at_step=worse_from(6),
    )
    columns = last.train()
    assert columns["kept_step"] == 12
    assert error(model) == [s for s in columns["validation_error"] if s is not None][-1] > best


@pytest.mark.slow
def test_moving_statistics_are_those_that_were_evaluated(tmp_path):
    trainer, model = make_trainer(
        tmp_path,
        config=EVERY,
        layers=[keras.layers.BatchNormalization()],
        evaluate=lambda model: float(np.abs(model.layers[0].moving_mean.numpy() - 0.02).sum()),
    )
    columns = trainer.train()
    statistic = float(np.abs(model.layers[0].moving_mean.numpy() - 0.02).sum())
    assert statistic == columns["best"]["score"]
    assert columns["kept_step"] < 12


@pytest.mark.parametrize("at", fast([7], [3, 7, 10]))
@pytest.mark.slow
def test_begun_again_it_keeps_the_same(tmp_path, at):
    """The run ends by an error before a step; its last checkpoint may then be older than the best."""

    def end(step, model):
        worse_from(4)(step, model)
        if step == at:
            raise KeyError

    config = {**EVERY, "ema": 0.5}
    with pytest.raises(KeyError):
        make_trainer(tmp_path / "1", config=config, evaluate=error, at_step=end)[0].train()
    runs = []
    for folder in ("1", "2"):
        trainer, model = make_trainer(
            tmp_path / folder, config=config, evaluate=error, at_step=worse_from(4)
        )
        runs.append((trainer.train(), weights_of(model)))
    assert runs[0][0]["best"] == runs[1][0]["best"]
    assert runs[0][0]["kept_step"] == runs[1][0]["kept_step"]
    for one, other in zip(runs[0][1], runs[1][1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_best_stays_where_its_steps_are_taken_back(tmp_path):
    """The best is that of step 9; the run returns to step 8, and is never as good again."""
    scores = iter([0.5, 0.4, 0.1, 0.3, 0.3, 0.2, 0.2])
    config = {**BEST, "evaluate_every": 3, "max_rollbacks": 1}
    taken = {}

    def evaluate(model):
        score = next(scores)
        taken[score] = weights_of(model)
        return score

    trainer, model = make_trainer(
        tmp_path, nan_from=9, nan_once=True, config=config, evaluate=evaluate
    )
    columns = trainer.train()
    assert columns["rollbacks"] == 1
    assert columns["best"] == {"step": 9, "score": 0.1}
    assert columns["kept_step"] == 9
    for one, other in zip(weights_of(model), taken[0.1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_evaluation_after_skipped_steps_counts(tmp_path):
    """The weights are those of the last good step."""
    trainer, _ = make_trainer(tmp_path, nan_from=11, config=EVERY, evaluate=error)
    columns = trainer.train()
    rows = Curves(str(tmp_path / "curves.jsonl")).rows
    scores = [(row["validation_error"], -row["step"]) for row in rows if "validation_error" in row]
    # Of equal scores, as after skipped steps, the last.
    assert (columns["best"]["score"], -columns["best"]["step"]) == min(scores)


def test_without_a_best_the_last_is_kept(tmp_path):
    trainer, _ = make_trainer(tmp_path, config=BEST, evaluate=lambda model: np.nan)
    columns = trainer.train()
    assert columns["best"] is None
    assert columns["kept_step"] == 12


def test_a_best_that_cannot_be_read_is_said(tmp_path, capsys):
    def spoil(step, model):
        worse_from(6)(step, model)
        if step == 11:
            for path in (tmp_path / "checkpoints" / "best").glob("ckpt-*.data*"):
                path.write_bytes(path.read_bytes()[:10])

    trainer, _ = make_trainer(tmp_path, config=EVERY, evaluate=error, at_step=spoil)
    columns = trainer.train()
    assert columns["kept_step"] == 12
    assert "The last weights are kept." in capsys.readouterr().out


def test_metrics_test_and_model_file_are_of_the_kept_step(tmp_path):
    config = {
        **EVERY,
        "ema": 0.5,
        "jacobian_penalty": 0.0,
        "optimizer": "adam",
        "learning_rate": 0.1,
        "warmup_share": 0.0,
        "schedule": "constant",
    }
    made = []

    def build():
        task = make_task(evaluate=error, at_step=worse_from(6))
        made.append(task.model)
        return Experiment(task, lambda: {"error": error(task.model)})

    metrics = experiment.train(build, config, str(tmp_path))
    assert metrics["train"]["kept_step"] == metrics["train"]["best"]["step"] < 12
    assert metrics["test"]["error"] == metrics["train"]["best"]["score"]
    assert error(keras.models.load_model(tmp_path / "model.keras")) == metrics["test"]["error"]
