import subprocess
import sys

import numpy as np
import pytest

from tfdeq.data.text import overlap
from tfdeq.data.token_data import token_data

TRAINING = b"one two three\n\n  four five six seven  \nelse:\nlast\n"


@pytest.mark.parametrize(
    ("other", "options", "expected"),
    [
        (b"one two three\nnew\n", {}, 13 / 16),
        (b"\n \n\tone two three \r\nnew\n", {}, 13 / 16),
        (b"one two\nthree\n", {}, 0),
        (b"one two three\nelse:\nelse:\n", {"at_least": 6}, 13 / 23),
        (b"one two three\nelse:\nlast\n", {"passage": 2}, 9 / 22),
        (b"", {}, 0),
        (b"\n\n", {"passage": 3}, 0),
    ],
)
def test_counts_bytes_of_known_lines(other, options, expected):
    assert overlap.overlap(TRAINING, other, **options) == pytest.approx(expected)


def test_words_are_lines_up_to_their_ends():
    vocabulary = ("<eos>", "a", "bee")
    streams = {
        "train": np.array([1, 2, 0, 2, 0], np.int32),
        "validation": np.array([1, 2, 0, 1, 0], np.int32),
        "test": np.array([2, 0], np.int32),
    }
    data = token_data(streams, vocabulary_size=3, unit="word", vocabulary=vocabulary)
    found = overlap.texts(data)
    assert overlap.overlap(found["train"], found["validation"]) == pytest.approx(5 / 6)
    assert overlap.overlap(found["train"], found["test"]) == 1


@pytest.mark.slow
def test_the_program_prints_the_shares(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"line {place}\n" for place in range(2000)))
    result = subprocess.run(
        [
            *(sys.executable, "-m", "trainers.overlap", "--dataset=text"),
            *(f"--files={tmp_path / '*.txt'}", f"--prepared_dir={tmp_path / 'prepared'}"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    rows = [line.split("  ")[0] for line in result.stdout.splitlines()]
    assert {"all lines", "lines of at least 20 bytes", "passages of at least 3 lines"} <= set(rows)
    assert "share of the bytes of validation and test that stand in lines" in result.stdout


@pytest.mark.slow
def test_an_unknown_option_is_one_line():
    result = subprocess.run(
        [sys.executable, "-m", "trainers.overlap", "--dataset=python_stdlib", "--files=x"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "takes no --files" in result.stderr
    assert "Traceback" not in result.stderr
