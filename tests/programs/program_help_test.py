import pathlib
import subprocess
import sys

import pytest

from trainers.language_model import CONFIGURATION_FLAGS

ROOT = pathlib.Path(__file__).absolute().parents[2]
PROGRAMS = {
    "trainers.report": "--output=TEXT",
    "trainers.copy_memory": "--test_lengths=VALUE,VALUE",
    "trainers.image_classifier": "--cell=monotone|monotone_multiscale|multiscale|residual",
    "export.saved_model": "--workdir=TEXT",
    "export.verify": "--workdir=TEXT",
    "export.client": "--address=TEXT",
    "export.load_test": "--requests=NUMBER",
    "export.serving_config": "--models=VALUE,VALUE",
    "export.serving_program": "--rounds=NUMBER",
    "benchmarks.training.compare": "--rivals=depths|recipes",
    "benchmarks.engine.memory": "--budgets=VALUE,VALUE",
    "benchmarks.training.suite": "--suite=copy_memory|ptb_words",
    "benchmarks.training.training_memory": "--depths=VALUE,VALUE",
}
FAST = ("benchmarks.training.compare",)


def shown_by(module):
    """Returns the output of --help from a separate process, without other programs' flags."""
    result = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_a_trainers_flags_in_groups_with_their_defaults():
    text = shown_by("trainers.language_model")
    lines = text.splitlines()
    assert lines[0].startswith("Trains a deep equilibrium language model")
    assert lines[2:4] == ["Run", "  --workdir=TEXT"]
    order = [
        text.index(f"\n{title}\n") for title in ("Run", "Data", "Model", "Optimiser", "Devices")
    ]
    assert order == sorted(order)
    shown = {line.split("=")[0].strip().removeprefix("--").removeprefix("[no]")
             for line in lines if line.startswith("  --")}  # fmt: skip
    assert {*CONFIGURATION_FLAGS, "workdir", "dry_run", "baseline"} <= shown
    assert not {"verbosity", "alsologtostderr", "help"} & shown
    words = " ".join(text.split())
    assert "if it holds this run, the run is resumed. Required." in words
    assert "--[no]locked_dropout Whether" in words
    assert "Default: fixed_point_iteration." in words
    assert words.count("Default: ") + words.count("Default is") >= len(shown) - 1
    assert all(len(line) <= 100 for line in lines if not line.startswith("  --"))


@pytest.mark.parametrize(
    "module", [m if m in FAST else pytest.param(m, marks=pytest.mark.slow) for m in PROGRAMS]
)
def test_every_program_shows_its_own_flags_and_ends_well(module):
    text = shown_by(module)
    assert PROGRAMS[module] in text
    assert "--verbosity" not in text
    assert "--helpfull lists" in text
    if module == "benchmarks.training.compare":  # its own flags, then those of its trainer
        assert text.index("This program") < text.index("\nRun\n")
