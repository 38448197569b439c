"""Folders that are written whole or not at all."""

import os

import pytest

from tfdeq.programs import whole_folder
from tfdeq.programs.whole_folder import write_whole


def fill(text):
    def write(folder):
        (folder / "below").mkdir()
        (folder / "below" / "file").write_text(text)

    return write


def text_in(folder):
    return (folder / "below" / "file").read_text()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_and_the_folders_above_it(tmp_path):
    path = tmp_path / "a" / "b"
    assert write_whole(path, fill("x")) == path
    assert text_in(path) == "x"
    assert names(path.parent) == ["b"]
    # As any other folder, not for its owner alone.
    (tmp_path / "usual").mkdir()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_while_it_is_written_nothing_is_seen(tmp_path):
    path = tmp_path / "folder"

    def write(folder):
        fill("x")(folder)
        assert not path.exists()

    write_whole(path, write)
    assert path.exists()


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    path = write_whole(tmp_path / "folder", fill("before"))

    def fail(folder):
        fill("half")(folder)
        raise RuntimeError("stop")

    for replace in (False, True):
        with pytest.raises(RuntimeError, match="stop"):
            write_whole(path, fail, replace=replace)
    assert text_in(path) == "before"
    assert names(tmp_path) == ["folder"]


def test_what_is_there_is_replaced_on_request_alone(tmp_path):
    path = write_whole(tmp_path / "folder", fill("before"))
    (path / "further").write_text("")
    with pytest.raises(FileExistsError, match="folder' is there already. Nothing was changed"):
        write_whole(path, fill("after"))
    assert text_in(path) == "before"
    write_whole(path, fill("after"), replace=True)
    assert text_in(path) == "after"
    assert names(path) == ["below"]
    assert names(tmp_path) == ["folder"]


def test_replaced_where_the_system_has_no_exchange(tmp_path, monkeypatch):
    monkeypatch.setattr(whole_folder, "_renamed", lambda *_: False)
    path = write_whole(tmp_path / "folder", fill("before"))
    write_whole(path, fill("after"), replace=True)
    assert text_in(path) == "after"
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("replace", [False, True])
def test_an_empty_folder_and_a_file(tmp_path, replace):
    (tmp_path / "empty").mkdir()
    assert text_in(write_whole(tmp_path / "empty", fill("x"), replace=replace)) == "x"
    (tmp_path / "file").write_text("own")
    with pytest.raises(FileExistsError, match="file' is there already"):
        write_whole(tmp_path / "file", fill("x"), replace=replace)
    assert (tmp_path / "file").read_text() == "own"


def test_what_a_killed_writer_left_is_removed_once_it_is_old(tmp_path):
    left, young = tmp_path / ".partial-folder-abc", tmp_path / ".partial-folder-def"
    others = tmp_path / ".partial-other-abc"
    for path in (left, young, others):
        path.mkdir()
        (path / "file").write_text("")
    for path in (left, others):
        os.utime(path, (0, 0))
    write_whole(tmp_path / "folder", fill("x"))
    assert names(tmp_path) == [".partial-folder-def", ".partial-other-abc", "folder"]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="folder cannot be written: No space left on device. Free"):
        write_whole(tmp_path / "folder", fill("x"))
    assert names(tmp_path) == []
