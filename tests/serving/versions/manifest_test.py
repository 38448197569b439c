"""The manifest of a version: its contents, and the errors for a version that differs from it."""

import hashlib
import json
import os

import pytest

from tfdeq.serving.versions import manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "variables").mkdir()
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / "saved_model.pb").write_bytes(b"graph")
    (tmp_path / "variables" / "variables.index").write_bytes(b"index")
    (tmp_path / "assets.extra" / "model_card.json").write_text("{}")
    manifest.write(tmp_path)
    return tmp_path


def test_names_every_file_and_one_digest(folder):
    text = (folder / "assets.extra" / "manifest.json").read_bytes()
    assert json.loads(text) == {
        "files": {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in (
                *("assets.extra/model_card.json", "saved_model.pb", "variables/variables.index"),
            )
        }
    }
    assert manifest.digest(folder) == hashlib.sha256(text).hexdigest()
    assert manifest.differences(folder) == ([], [], [])
    manifest.require_whole(folder)
    manifest.write(folder)  # again, as when a version gets another number
    assert (folder / "assets.extra" / "manifest.json").read_bytes() == text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda folder: (folder / "saved_model.pb").write_bytes(b"grapf"),
            "changed: saved_model.pb",
        ),
        (
            lambda folder: (folder / "assets.extra" / "model_card.json").write_text("{ }"),
            "changed: assets.extra/model_card.json",
        ),
        (
            lambda folder: (folder / "variables" / "variables.index").unlink(),
            "missing: variables/variables.index",
        ),
        (lambda folder: (folder / "more").write_text(""), "not of the version: more"),
        (lambda folder: os.symlink("nowhere", folder / "more"), "not of the version: more"),
        (lambda folder: os.symlink(folder, folder / "more"), "not of the version: more"),
    ],
)
def test_what_is_not_as_it_was_is_named(folder, change, words):
    before = manifest.digest(folder)
    change(folder)
    with pytest.raises(
        manifest.ChangedVersionError, match=f"has changed since its export \\({words}"
    ):
        manifest.require_whole(folder)
    manifest.write(folder)
    manifest.require_whole(folder)
    assert manifest.digest(folder) != before


def test_a_version_of_an_older_release_is_exported_again(folder):
    (folder / "assets.extra" / "manifest.json").unlink()
    for ask in (manifest.read, manifest.digest, manifest.require_whole):
        with pytest.raises(
            FileNotFoundError, match="an older release exported it. Export the model"
        ):
            ask(folder)
    with pytest.raises(FileNotFoundError, match="manifest.json"):
        manifest.read(folder / "saved_model.pb")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": {}}', '{"files": 3}', "\xff", None])
def test_a_manifest_that_is_no_manifest(folder, text):
    file = folder / "assets.extra" / "manifest.json"
    # None: the same contents in another form, which has another digest.
    file.write_bytes((file.read_text() + "\n" if text is None else text).encode("latin-1"))
    with pytest.raises(
        manifest.ChangedVersionError, match="has changed since export.saved_model wrote it"
    ):
        manifest.read(folder)


def test_many_files_are_counted(folder):
    for number in range(9):
        (folder / str(number)).write_text("")
    assert manifest.differences(folder).text().endswith("0, 1, 2, 3, 4 and 4 more")
