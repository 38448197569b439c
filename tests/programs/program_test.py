import signal
import subprocess
import sys

import pytest

from tests.support.shell import own_lines

CODE = """
import tests.support.light  # before the library
from tfdeq.programs import program
def main():
    {body}
program.run(main)
"""


def run(body, *arguments):
    return subprocess.run(
        [sys.executable, "-c", CODE.format(body=body), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("error", ["ValueError", "FileNotFoundError", "FloatingPointError"])
def test_input_errors_are_one_line(error):
    result = run(f"raise {error}('received 3; give 4')")
    assert result.returncode == 1
    assert own_lines(result.stderr).strip() == "Error: received 3; give 4"


def test_input_errors_show_their_traceback_on_request():
    result = run("raise ValueError('received 3')", "--verbosity=1")
    assert result.returncode == 1
    assert "Traceback" in own_lines(result.stderr)


def test_defects_are_shown_in_full():
    result = run("raise KeyError('lost')")
    assert result.returncode == 1
    assert "Traceback" in own_lines(result.stderr)


def test_stray_arguments_are_refused():
    result = run("pass", "stray")
    assert result.returncode != 0
    assert "Unknown arguments: stray" in result.stdout + own_lines(result.stderr)


def test_a_program_may_take_arguments():
    code = """
from absl import flags
import tests.support.light  # before the library
from tfdeq.programs import program
flags.DEFINE_string("output", None, "")
program.run(lambda arguments: print(arguments, flags.FLAGS.output), arguments=True)
"""
    for arguments, printed in (
        (["a", "--output=x", "b"], "['a', 'b'] x"),
        ([], "[] None"),
        (["--", "--a"], "['--a'] None"),
    ):
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert result.stdout.strip() == printed


def test_success_says_nothing_of_its_own():
    result = run("print('done')")
    assert result.returncode == 0
    assert result.stdout == "done\n"


def test_a_run_that_failed_is_one_line():
    result = run("from tfdeq.programs.processes import RunFailed; raise RunFailed('see its log')")
    assert result.returncode == 1
    assert own_lines(result.stderr).strip() == "Error: see its log"


@pytest.mark.parametrize(
    ("resumable", "number", "status"),
    [
        (True, signal.SIGTERM, 75),
        (True, signal.SIGINT, 75),
        (False, signal.SIGTERM, 143),
    ],
)
def test_signals_end_a_program_by_what_it_is(resumable, number, status):
    code = f"""
import os
import tests.support.light  # before the library
from tfdeq.programs import program
def main():
    print("on", flush=True)
    os.kill(os.getpid(), {int(number)})
    print("after", flush=True)
program.run(main, resumable={resumable})
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == status, own_lines(result.stderr)
    assert "after" not in result.stdout
    assert ("resume from the last checkpoint" in result.stdout) is resumable
    assert not own_lines(result.stderr)
