import os

import pytest

from tfdeq.programs.workdir import read_json, write_json
from tfdeq.training.records import resumption
from tfdeq.training.text import model_flags

CONFIG = {"width": 8, "log_every": 10}
TEXT = {"dataset": "text", "data_dir": None, "files": "a/*.txt", "data_fingerprint": "1" * 64}


def begun(folder, config, steps=None):
    """Makes a folder with a configuration and, for a step, a checkpoint."""
    write_json(os.path.join(folder, "config.json"), config)
    if steps is not None:
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "checkpoints" / f"ckpt-{steps}.index").touch()
    return str(folder)


def test_a_new_folder_is_free_and_stays_untouched(tmp_path):
    folder = tmp_path / "run"
    assert not resumption.check_configuration(str(folder), CONFIG)
    assert not folder.exists()


def test_a_file_is_no_workdir(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(NotADirectoryError, match="is a file"):
        resumption.check_configuration(str(path), {})


def test_the_same_configuration_goes_on_and_another_is_refused(tmp_path):
    folder = begun(tmp_path, CONFIG)
    assert resumption.check_configuration(folder, CONFIG)
    with pytest.raises(ValueError, match=r"another configuration: --width: 8 there, 16 received"):
        resumption.check_configuration(folder, {**CONFIG, "width": 16})
    assert read_json(tmp_path / "config.json") == CONFIG


def test_the_refusal_names_the_flags_to_give(tmp_path):
    """Including flags with another default in a newer version, because the folder has all values."""
    config = {"width": 8, "cutoffs": ["2", "4"], "files": None}
    folder = begun(tmp_path, config)
    with pytest.raises(
        ValueError, match=r"To continue the run, give --cutoffs=2,4 no --files --width=8"
    ):
        resumption.check_configuration(folder, {"width": 16, "cutoffs": [], "files": "x"})


def test_reporting_may_differ(tmp_path):
    folder = begun(tmp_path, CONFIG)
    changed = {**CONFIG, "log_every": 5}
    assert resumption.check_configuration(folder, changed, may_differ=("log_every",))


def test_text_is_judged_by_its_fingerprint(tmp_path):
    folder = begun(tmp_path, {**CONFIG, **TEXT})
    moved = {**CONFIG, **TEXT, "files": "b/*.txt", "data_dir": "/elsewhere"}
    assert resumption.check_configuration(folder, moved)
    # Data that are not known to be the same count as different.
    del moved["data_fingerprint"]
    with pytest.raises(ValueError, match=r"--files: 'a/\*\.txt' there"):
        resumption.check_configuration(folder, moved)


def test_changed_text_is_no_flag(tmp_path):
    folder = begun(tmp_path, {**CONFIG, **TEXT})
    changed = {**CONFIG, **TEXT, "data_fingerprint": "2" * 64}
    said = r"the content of --dataset=text has changed since \(fingerprint 1{12}…, now 2{12}…\)\. To continue"
    with pytest.raises(ValueError, match=said) as caught:
        resumption.check_configuration(folder, changed)
    assert "data_fingerprint" not in str(caught.value)
    with pytest.raises(ValueError, match=r"since; --files was 'a/\*\.txt', now 'b'"):
        resumption.check_configuration(folder, {**changed, "files": "b"})
    with pytest.raises(ValueError, match="was trained on --dataset=text, not on ptb"):
        resumption.check_configuration(folder, {**changed, "dataset": "ptb"})


def test_a_flag_that_an_older_run_lacks_is_what_it_was_in_effect(tmp_path):
    folder = begun(tmp_path, CONFIG)
    newer = {**CONFIG, "patience": 3}
    assert resumption.check_configuration(folder, newer, before={"patience": 3})
    with pytest.raises(ValueError, match=r"--patience: 3 there, 4 received.*give --patience=3"):
        resumption.check_configuration(folder, {**newer, "patience": 4}, before={"patience": 3})


def test_a_flag_that_this_version_lacks(tmp_path):
    folder = begun(tmp_path, {**CONFIG, "old_flag": 3})
    with pytest.raises(ValueError, match=r"with --old_flag=3, which this version does not have"):
        resumption.check_configuration(folder, CONFIG)


def test_flags_that_change_nothing_may_differ(tmp_path):
    assert model_flags.MODELS  # defines these uses
    config = {"model": "lstm", "depth": 2, "heads": 4, "width": 8}
    folder = begun(tmp_path, config)
    assert resumption.check_configuration(folder, {**config, "heads": 2})
    with pytest.raises(ValueError, match="--width"):
        resumption.check_configuration(folder, {**config, "heads": 2, "width": 4})


def test_a_run_may_become_longer_and_not_shorter_than_it_is(tmp_path):
    config = {**CONFIG, "train_steps": 100}
    folder = begun(tmp_path, config, steps=60)
    with pytest.raises(ValueError, match=r"--train_steps: 100 there, 200 received"):
        resumption.check_configuration(folder, {**config, "train_steps": 200})
    for steps in (60, 80, 200):
        longer = {**config, "train_steps": steps}
        assert resumption.check_configuration(folder, longer, may_differ=["train_steps"])
    shorter = {**config, "train_steps": 59}
    with pytest.raises(ValueError, match=r"has made 60 steps, more than --train_steps=59"):
        resumption.check_configuration(folder, shorter, may_differ=["train_steps"])


def test_a_finished_run_is_one_of_as_many_steps(tmp_path):
    config = {**CONFIG, "train_steps": 100}
    folder = begun(tmp_path, config, steps=100)
    assert resumption.finished(folder, config) is None
    write_json(f"{folder}/metrics.json", {"config": config})
    assert resumption.finished(folder, config) == {"config": config}
    assert resumption.finished(folder, {**config, "train_steps": 101}) is None
    os.remove(tmp_path / "checkpoints" / "ckpt-100.index")
    assert resumption.steps_made(folder) == 100


def test_a_run_is_tested_again_with_other_flags_of_the_test(tmp_path):
    config = {**CONFIG, "train_steps": 100, "test_budget": 4.0, "test_sizes": ["64"]}
    folder = begun(tmp_path, config, steps=100)
    write_json(f"{folder}/metrics.json", {"config": config})
    for changes in ({"test_budget": 8.0}, {"test_sizes": ["64", "128"]}):
        assert resumption.check_configuration(folder, {**config, **changes})
        assert resumption.finished(folder, {**config, **changes}) is None
    newer = {**config, "test_starts": ["1", "4"]}
    assert resumption.finished(folder, newer, before={"test_starts": []}) is None
    for same in (newer, {**config, "test_sizes": ("64",)}):
        assert resumption.finished(folder, same) == {"config": config}


def test_the_smallest_length_is_kept(tmp_path):
    folder = str(tmp_path)
    seen = []
    for steps in (100, 200, 150, 50, 300):
        config = resumption.going_on(folder, {"train_steps": steps})
        write_json(f"{folder}/config.json", config)
        seen.append(config.get("shortest_train_steps"))
    assert seen == [None, 100, 100, None, 50]
    assert resumption.check_configuration(folder, {"train_steps": 300})


def test_examples_of_the_trainers_own_are_judged_too(tmp_path):
    folder = begun(tmp_path, {**CONFIG, "data_fingerprint": "1" * 64})
    assert resumption.check_configuration(folder, {**CONFIG, "data_fingerprint": "1" * 64})
    with pytest.raises(ValueError, match=r"started with other data.*fingerprint 1{12}…, now 2{12}"):
        resumption.check_configuration(folder, {**CONFIG, "data_fingerprint": "2" * 64})
    other = {**CONFIG, "data_fingerprint": "2" * 64, "test_puzzles": 100}
    with pytest.raises(ValueError, match=r"since; --test_puzzles was None, now 100 \(fingerprint"):
        resumption.check_configuration(folder, other)
