"""Runs the tests of one file under Bazel: the main program of every py_test."""

import os
import sys

import pytest


def main(file: str, *arguments: str) -> int:
    """Runs the tests of a file, without those marked slow.

    Args:
        file: path from the workspace, in which Bazel starts a test.
        arguments: additional arguments for pytest, from `bazel test --test_arg`.
    """
    scratch = os.environ["TEST_TMPDIR"]
    # Bazel sets no HOME; caches belong to the test. Child processes of a test inherit this.
    os.environ.setdefault("HOME", scratch)
    options = ["-c", "pyproject.toml", "-m", "not slow", "-p", "no:cacheprovider"]
    options.append(f"--basetemp={os.path.join(scratch, 'pytest')}")
    if "XML_OUTPUT_FILE" in os.environ:
        options.append(f"--junitxml={os.environ['XML_OUTPUT_FILE']}")
    if "TESTBRIDGE_TEST_ONLY" in os.environ:  # bazel test --test_filter=...
        options += ["-k", os.environ["TESTBRIDGE_TEST_ONLY"]]
    status = pytest.main([*options, *arguments, file])
    # All tests in a file may be slow.
    return 0 if status == pytest.ExitCode.NO_TESTS_COLLECTED else int(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
