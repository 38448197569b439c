"""The environment that a run records."""

import json
import subprocess

import keras
import tensorflow as tf

from tfdeq.training.records import environment


def test_each_start_adds_an_entry(tmp_path):
    environment.record(str(tmp_path))
    environment.record(str(tmp_path))
    starts = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert len(starts) == 2
    packages = starts[1]["packages"]
    assert (packages["tensorflow"], packages["keras"]) == (tf.__version__, keras.__version__)
    assert starts[1]["devices"]["CPU"] >= 1
    assert starts[1]["command"]


def test_the_commit_of_a_checkout_and_of_none(tmp_path):
    assert environment.commit(str(tmp_path / "missing")) is None

    def git(*arguments):
        identity = ("-c", "user.name=name", "-c", "user.email=name@example.org")
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, timeout=20)

    git("init", "--quiet")
    (tmp_path / "file").write_text("content")
    git("add", "file")
    git("commit", "--quiet", "--message=first")
    found = environment.commit(str(tmp_path))
    assert len(found["hash"]) == 40
    assert not found["changed"]
    (tmp_path / "file").write_text("other content")
    assert environment.commit(str(tmp_path))["changed"]
