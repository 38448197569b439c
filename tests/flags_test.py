import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from trainers import language_model  # noqa: F401, defines the flags
from trainers.flags import may_differ


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
        ((), "--workdir"),
        (("--workdir=x", "--solver=newton"), "anderson|broyden|fixed_point_iteration"),
        (("--workdir=x", "--tolerance=0"), "--tolerance must be greater than 0"),
        (("--workdir=x", "--max_steps=0"), "--max_steps must be at least 1"),
        (("--workdir=x", "--dataset=nothing"), "python_stdlib"),
        (("--workdir=x", "--ema=1"), r"--ema must be in [0, 1)"),
        (("--workdir=x", "--warmup_share=2"), "--warmup_share must be in [0, 1]"),
        (("--workdir=x", "--warmup_steps=100"), "Give --warmup_share, a share of --train_steps"),
        (("--workdir=x", "--strategy=two"), "one_device|mirrored|multi_worker|tpu"),
        (
            ("--workdir=x", "--accumulation_steps=3"),
            "--accumulation_steps must divide --batch_size",
        ),
    ],
)
def test_bad_flags_are_refused_with_what_is_allowed(arguments, message):
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        with pytest.raises(flags.IllegalFlagValueError) as caught:
            flags.FLAGS(["trainer", *arguments])
    assert message in str(caught.value)


def test_the_program_says_so_in_a_line():
    result = run("--workdir=x", "stray")
    assert result.returncode != 0
    assert "Unknown arguments: stray" in result.stdout + result.stderr


def test_what_a_continuation_may_change():
    config = {"equilibrium_watch": "none"}
    assert "log_every" in may_differ(config)
    # The watch acts on the rows of the curves.
    assert "log_every" not in may_differ({"equilibrium_watch": "penalty"})
    assert "strategy" in may_differ({"equilibrium_watch": "penalty"})


def test_help_says_unit_and_default():
    result = run("--helpfull")
    text = " ".join(result.stdout.split())
    assert "in the forward solve of the finished model. Default: 8." in text
    assert "Peak learning rate" in text
