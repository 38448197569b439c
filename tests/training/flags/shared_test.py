import contextlib
import pathlib
import re
import shlex
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from tfdeq.programs.flag_groups import GROUPS
from tfdeq.training.flags import shared
from tfdeq.training.flags.shared import before_it_existed, check_uses, may_differ, on_command_line
from trainers.language_model import CONFIGURATION_FLAGS

ROOT = pathlib.Path(__file__).absolute().parents[3]
PRESETS = sorted((ROOT / "trainers" / "presets").glob("*.flags"))


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
    with pytest.raises(flags.IllegalFlagValueError) as caught, parsed(*arguments):
        pass
    assert message in str(caught.value)


def test_what_a_continuation_may_change():
    config = {"model": "deq", "depth": 0, "equilibrium_watch": "none"}
    assert "log_every" in may_differ(config)
    # The watch acts on the rows of the curves, of an equilibrium.
    assert "log_every" not in may_differ({**config, "equilibrium_watch": "penalty"})
    assert "log_every" in may_differ({**config, "equilibrium_watch": "penalty", "depth": 2})
    for name in ("strategy", "jit_compile", "accumulation_steps", "loss_chunk", "max_rollbacks"):
        assert name in may_differ({**config, "equilibrium_watch": "penalty"})
    # The kept model is the best of those evaluated.
    assert "evaluate_every" in may_differ({**config, "keep": "last"})
    assert "evaluate_every" not in may_differ({**config, "keep": "best"})


def test_a_run_gets_another_length_only_by_a_flag():
    config = {"equilibrium_watch": "none"}
    for given, expected in (((), False), (("--train_steps=2000",), True)):
        with parsed("--workdir=x", *given):
            assert ("train_steps" in may_differ(config)) == expected


def test_older_runs_had_the_defaults_of_flags_that_they_lack(monkeypatch):
    assert before_it_existed(["width", "data_fingerprint"]) == {"width": 128}
    monkeypatch.setitem(shared._BEFORE, "width", 64)
    assert before_it_existed(["width"]) == {"width": 64}


@contextlib.contextmanager
def parsed(*arguments):
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["trainer", *arguments])
        yield


def test_flags_on_the_command_line():
    arguments = [
        "--width=3",
        "-depth",
        "1",
        "--nolocked_dropout",
        "--flagfile=x",
        "--",
        "--heads=1",
    ]
    assert on_command_line(arguments) == {"width", "depth", "locked_dropout"}
    # Not a flag "w" that is turned off.
    assert on_command_line(["--norm=post"]) == {"norm"}


def accept(monkeypatch, *arguments):
    """Parses command line arguments like the program."""
    monkeypatch.setattr(sys, "argv", ["trainer", *arguments])
    with parsed(*arguments):
        check_uses()


def test_flags_that_change_nothing_are_refused(monkeypatch):
    text = (
        r"--heads=8 changes nothing with --model=deq --cell=trellis: it is used with --model=deq "
    )
    text += r"--cell=transformer, or with --model=transformer\. Leave it out"
    with pytest.raises(ValueError, match=text):
        accept(monkeypatch, "--workdir=x", "--cell=trellis", "--heads=8")
    accept(monkeypatch, "--workdir=x", "--cell=trellis", "--heads=4")  # the default


def test_a_file_of_flags_may_have_more_than_a_model_uses(monkeypatch, tmp_path, capsys):
    (tmp_path / "some.flags").write_text("--heads=8\n--width=64\n--kernel_size=2\n")
    accept(
        monkeypatch, "--workdir=x", f"--flagfile={tmp_path}/some.flags", "--model=lstm", "--depth=2"
    )
    assert "these change nothing here: --heads.\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "path",
    [p for p in PRESETS if not p.stem.startswith(("copy_memory", "cifar10"))],  # of other trainers
    ids=lambda p: p.stem,
)
def test_every_preset_uses_what_it_says(path, monkeypatch, capsys):
    lines = [
        line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("--")
    ]
    accept(monkeypatch, "--workdir=x", *lines)
    assert capsys.readouterr().out == ""


def commands():
    """Returns the flags of all commands of this trainer in the documents and the Makefile."""
    found = []
    for path in (ROOT / "README.md", ROOT / "Makefile", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8").replace(
            "trainers/presets/NAME", "trainers/presets/ptb_words"
        )
        text = text.replace("$(SERVING_FLAGS)", "")
        for match in re.findall(r"-m trainers\.language_model([^`\n]*)", text):
            found.append((path.name, shlex.split(match, comments=True)))
    # The models in the table of docs/training.md.
    table = (
        (ROOT / "docs" / "training.md").read_text(encoding="utf-8").split("| flags | trains |")[1]
    )
    rows = re.findall(r"^\| `(--[^`]*)`.*\|$", table.split("\n\n")[0], re.MULTILINE)
    assert len(rows) >= 6
    return [*found, *(("training.md", row.split()) for row in rows)]


@pytest.mark.parametrize(("document", "arguments"), commands())
def test_commands_of_the_documents_are_accepted(document, arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    accept(monkeypatch, "--workdir=x", *arguments)


def test_every_flag_is_in_a_group():
    grouped = {name for names in GROUPS.values() for name in names}
    assert {*CONFIGURATION_FLAGS, *shared._NOT_CONFIGURATION} <= grouped
    assert {"dry_run", "baseline", "evaluation_batches", "test_lengths"} <= grouped


def test_help_says_unit_default_and_what_a_flag_goes_with():
    text = "".join(flags.FLAGS.get_help().split())  # lines are broken at hyphens too
    assert "finishedmodel.Usedwith--model=deq--depth=0.Default:8." in text
    assert "Peaklearningrate" in text
