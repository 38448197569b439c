"""What the C library does with the memory that a training step frees."""

import ctypes
import platform

# Numbers of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Lets this process keep what it frees for its next allocations, and returns whether it will.

    By default glibc gives large blocks back to the system at once, and every step of a training on the
    CPU gets them again page by page. Kept, they cost memory, because they fit what comes next less well.
    Only glibc can do so; elsewhere nothing changes.

    Source: mallopt(3), M_MMAP_MAX and M_TRIM_THRESHOLD.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**26}
    return all(mallopt(name, value) for name, value in settings.items())
