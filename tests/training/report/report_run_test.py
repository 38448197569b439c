import json

import pytest

from tfdeq.programs.workdir import write_json
from tfdeq.training.report import report_run


def make_run(folder, metrics=None, rows=()):
    folder.mkdir(parents=True, exist_ok=True)
    if metrics is not None:
        write_json(str(folder / "metrics.json"), metrics)
    if rows:
        (folder / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_reads_a_finished_run_and_one_that_trains(tmp_path):
    finished = make_run(tmp_path / "a", {"config": {"seed": 1}, "train": {"step": [1, 2]}})
    training = make_run(tmp_path / "b", rows=[{"step": 20, "loss": 2.0}, {"step": 40}])
    write_json(f"{training}/config.json", {"seed": 2})
    write_json(f"{training}/environment.json", {"starts": [{"python": "3"}]})
    first, second = report_run.read([finished, training])
    assert (first.name, first.state, first.config, first.step) == ("a", "finished", {"seed": 1}, 2)
    assert (second.name, second.state) == ("b", "in progress at step 40")
    assert second.config == {"seed": 2}
    assert second.starts == [{"python": "3"}]
    assert second.last("loss") == 2.0
    assert second.last("residual") is None


def test_a_run_that_is_made_longer_is_in_progress(tmp_path):
    folder = make_run(tmp_path / "a", {"config": {"train_steps": 40}}, rows=[{"step": 60}])
    for steps, state in ((40, "finished"), (80, "in progress at step 60")):
        write_json(f"{folder}/config.json", {"train_steps": steps})
        assert report_run.read([folder])[0].state == state


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_a_run_is_an_error_that_names_the_command(tmp_path, exists):
    folder = tmp_path / "empty"
    if exists:
        folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds neither metrics\.json nor curves"):
        report_run.read([str(folder)])


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    folders = [str(tmp_path / name) for name in ("x/run", "y/run", "y/deep/run", "other")]
    assert report_run.distinct_names(folders) == ["x/run", "y/run", "deep/run", "other"]
    assert report_run.distinct_names(["/run", "/a/run"]) == ["/run", "a/run"]


def test_a_folder_counts_once(tmp_path):
    run = make_run(tmp_path / "run", {})
    (tmp_path / "link").symlink_to(run)
    assert report_run.distinct_folders([f"{run}/", run, str(tmp_path / "link")]) == [run]


def test_scores_are_the_numbers_beside_the_solve():
    row = {"accuracy": 0.9, "loss": None, "residual": 1e-3, "steps": 4.0, "by_budget": {}}
    assert report_run.scores(row) == {"accuracy": 0.9}


def test_budgets_are_sorted_and_odd_ones_left_out():
    by_budget = {"2.0": {"accuracy": 1.0}, "0.5": None, "full": {}, "nan": {}}
    run = report_run.Run("a", {"test": {"by_budget": by_budget}})
    assert run.by_budget == {0.5: {}, 2.0: {"accuracy": 1.0}}
