"""The peak of memory is the process's own."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tfdeq.training.devices import process_memory

_MIB = 2**20
_CHILD = (
    "import sys\n"
    # Imported from its folder, because the package's TensorFlow would be most of the peak.
    "sys.path.insert(0, sys.argv[1])\n"
    "from process_memory import peak_resident_bytes as peak\n"
    "before = peak()\n"
    "block = bytearray(b'1') * (64 * 2**20)\n"
    "print(before, peak())"
)


def _of_a_child() -> tuple[int, int]:
    folder = os.path.dirname(process_memory.__file__)
    output = subprocess.run(
        [sys.executable, "-c", _CHILD, folder], check=True, capture_output=True, text=True
    ).stdout
    before, after = map(int, output.split())
    return before, after


def test_a_childs_peak_is_not_its_parents():
    block = np.ones(500 * _MIB, np.uint8)  # this process has at least this much
    before, after = _of_a_child()
    assert process_memory.peak_resident_bytes() > block.nbytes
    assert before < 200 * _MIB  # Python and the package, far below the parent's block
    assert 64 * _MIB <= after - before < 80 * _MIB


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_fields_of_the_status():
    assert 0 < process_memory.status_bytes("VmRSS") <= process_memory.status_bytes("VmHWM")
    with pytest.raises(OSError, match="has no VmNothing"):
        process_memory.status_bytes("VmNothing")
