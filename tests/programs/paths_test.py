"""`~` in paths: in every flag and argument of every program that is a path."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags

from tfdeq import data
from tfdeq.data.folders import checked_folder
from tfdeq.programs import paths

ROOT = pathlib.Path(__file__).absolute().parents[2]
# Flags whose help mentions files and folders, but whose value is several paths or none.
OTHERS = {
    "files",  # globs, each expanded by tfdeq.data.text.files
    "models",  # NAME=FOLDER pairs, each folder expanded by export.serving_config
    "tpu",
}


@pytest.fixture
def home(monkeypatch, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


def test_what_is_expanded(home):
    assert paths.expanded("~") == home
    assert paths.expanded("~/a b") == home / "a b"
    assert paths.expanded(pathlib.Path("~/a")) == home / "a"
    for path in ("a/~", "./~", "~no-such-user/a", "a~"):
        assert str(paths.expanded(path)) == str(pathlib.Path(path))


def test_flags_that_are_paths(home):
    values = flags.FlagValues()
    for name in ("workdir", "report", "text"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    values(["program", "--workdir=~/runs", "--text=~/is home"])
    paths.expand_flags(values)
    assert (values.workdir, values.report, values.text) == (f"{home}/runs", None, "~/is home")


def test_flags_that_are_lists_of_paths(home):
    values = flags.FlagValues()
    flags.DEFINE_list("client_certificate", None, "", flag_values=values)
    values(["program", "--client_certificate=~/a.pem,b~"])
    paths.expand_flags(values)
    assert values.client_certificate == [f"{home}/a.pem", "b~"]


def sources():
    for folder in ("tfdeq", "trainers", "export", "benchmarks"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_every_flag_that_is_a_path_is_expanded():
    defined = re.compile(r'DEFINE_(?:string|list),?\s*\(?\s*"(\w+)",\s*[^,]+,\s*((?:"[^"]*"\s*)+)')
    speaks_of_paths = re.compile(
        r"[Ff]older|\bfile\b|JSON|Markdown|HTML|Interpreter|Where |Vocabulary file"
    )
    found = {
        name
        for source in sources()
        for name, text in defined.findall(source.read_text())
        if speaks_of_paths.search(text)
    }
    assert {"workdir", "output", "model", "report", "data_dir", "vocabulary"} <= found
    assert found - OTHERS <= paths.PATH_FLAGS, "a new flag that is a path belongs into PATH_FLAGS"


def test_nothing_else_expands_a_path():
    for source in sources():
        if source != ROOT / "tfdeq" / "programs" / "paths.py":
            assert "expanduser" not in source.read_text(), (
                f"{source}: use tfdeq.programs.paths.expanded"
            )


def test_a_program_gets_expanded_flags(home):
    code = """
from absl import flags
import tests.support.light  # before the library
from tfdeq.programs import program
flags.DEFINE_string("output", None, "")
flags.DEFINE_string("text", None, "")
program.run(lambda: print(flags.FLAGS.output, flags.FLAGS.text))
"""
    finished = subprocess.run(
        [sys.executable, "-c", code, "--output=~/x y", "--text=~"],
        cwd=ROOT,
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert finished.stdout == f"{home}/x y ~\n", finished.stderr


def test_folders_of_data_sets(home):
    (home / "data").mkdir()
    assert checked_folder("~/data", "") == home / "data"
    with pytest.raises(FileNotFoundError, match="--data_dir='~no-such-user/data' does not exist"):
        checked_folder("~no-such-user/data", "")
    (home / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        data.load("text", files="x", prepared_dir="~/file")
