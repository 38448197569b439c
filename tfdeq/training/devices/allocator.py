"""Settings of the C library for memory that a training step frees."""

import ctypes
import platform

# Parameter numbers of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Makes this process keep freed memory for its next allocations; returns whether that worked.

    By default glibc returns large blocks to the system at once, and every training step on the CPU gets
    them again page by page. If they are kept, the process needs more memory, because kept blocks fit
    later allocations less well. This is only possible with glibc; otherwise nothing changes.

    Source: mallopt(3), M_MMAP_MAX and M_TRIM_THRESHOLD.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**26}
    return all(mallopt(name, value) for name, value in settings.items())
