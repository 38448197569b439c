import subprocess
import sys

import pytest


def run(*arguments):
    """Runs the trainer with arguments that it must refuse before any work."""
    return subprocess.run(
        [sys.executable, "-m", "trainers.language_model", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "workdir"),
        (("--workdir=x", "--solver=newton"), "anderson|broyden|fixed_point_iteration"),
        (("--workdir=x", "--tolerance=0"), "--tolerance must be greater than 0"),
        (("--workdir=x", "--max_steps=0"), "--max_steps must be at least 1"),
        (("--workdir=x", "--dataset=nothing"), "python_stdlib"),
        (("--workdir=x", "stray"), "Unknown arguments: stray"),
    ],
)
def test_bad_flags_are_refused_with_what_is_allowed(arguments, message):
    result = run(*arguments)
    assert result.returncode != 0
    assert message in result.stdout + result.stderr


def test_help_says_unit_and_default():
    result = run("--helpfull")
    text = " ".join(result.stdout.split())
    assert "in the forward solve of the finished model. Default: 8." in text
    assert "Peak learning rate" in text
