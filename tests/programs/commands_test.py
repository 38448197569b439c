"""Tests of tfdeq.programs.commands: one table for console scripts, hints and processes."""

import pathlib
import tomllib

import pytest

from tfdeq.programs import commands

ROOT = pathlib.Path(__file__).absolute().parents[2]


def test_the_console_scripts_are_those_of_the_table():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {
        script: f"tfdeq.programs.commands:{program.replace('.', '_')}"
        for program, script in commands.SCRIPTS.items()
    }
    for place in scripts.values():
        assert callable(getattr(commands, place.split(":")[1]))
    with pytest.raises(AttributeError, match="trainers_unheard_of"):
        _ = commands.trainers_unheard_of


def test_every_program_is_in_the_table():
    programs = {
        f"{folder}.{path.stem}"
        for folder in ("trainers", "export")
        for path in (ROOT / folder).glob("*.py")
        if path.stem != "__init__"
    }
    assert programs == set(commands.SCRIPTS)


def test_every_package_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "tfdeq").rglob("__init__.py")
    }
    assert set(settings["packages"]) == packages | set(settings["package-dir"])


def test_in_a_clone_and_installed(monkeypatch):
    assert commands.command("trainers.report").endswith("python -m trainers.report")
    assert commands.module_of("trainers.report") == "trainers.report"
    assert (pathlib.Path(commands.ROOT) / "tfdeq" / "programs").is_dir()
    monkeypatch.setattr(commands, "_INSTALLED", True)
    assert commands.command("trainers.report") == "tfdeq-report"
    assert commands.module_of("trainers.report") == "tfdeq.programs.trainers.report"
    with pytest.raises(KeyError):
        commands.command("trainers.unheard_of")
