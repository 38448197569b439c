"""Tests of tfdeq.programs.presets."""

import os

import pytest

from tfdeq.programs import presets


def test_names_and_paths():
    assert {"copy_memory", "ptb_words"} <= set(presets.names())
    for name in presets.names():
        assert os.path.isfile(presets.path_of(name))
    with pytest.raises(
        ValueError, match=r"--preset=ptb is none of the presets: .*, copy_memory, ptb_"
    ):
        presets.path_of("ptb")


def test_a_preset_is_the_flagfile_that_it_stands_for():
    file = f"--flagfile={presets.path_of('ptb_words')}"
    expected = ["--workdir=a", file, "--depth=2"]
    assert presets.expanded(["--workdir=a", "--preset=ptb_words", "--depth=2"]) == expected
    assert presets.expanded(["--workdir=a", "--preset", "ptb_words", "--depth=2"]) == expected
    assert presets.expanded(["--", "--preset=ptb_words"]) == ["--", "--preset=ptb_words"]
    for bad in (["--preset"], ["--preset="], ["--preset=no/such"]):
        with pytest.raises(ValueError, match="is none of the presets"):
            presets.expanded(bad)
