"""Tests of tfdeq.training.devices.allocator: freed memory stays with the process."""

import platform
import subprocess
import sys

import pytest

# Allocates a block as large as an activation repeatedly, in a separate process: page faults of ten
# rounds.
_PROGRAM = """
import resource
from tfdeq.training.devices.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        len(b"x" * (64 << 20))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
assert keep_freed_memory()
faults()
print(given_back, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_what_was_freed_is_not_asked_of_the_system_again():
    command = [sys.executable, "-c", _PROGRAM]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    given_back, kept = map(int, result.stdout.split())
    assert given_back >= 10  # at least one fault each, for any size of pages
    assert kept <= 0.01 * given_back + 1
