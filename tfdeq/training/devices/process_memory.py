"""The memory of this process, as the operating system counts it."""

import resource
import sys


def peak_resident_bytes() -> int:
    """Returns the peak of this program's resident memory since it started, in bytes.

    On Linux that is VmHWM of /proc/self/status. `getrusage` is not used there, because its ru_maxrss
    starts, in a new program, with the peak of the process that started it. On other systems only
    getrusage is available.
    """
    if sys.platform == "linux":
        return status_bytes("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def status_bytes(field: str) -> int:
    """Returns a field of /proc/self/status that is a size, such as "VmRSS", in bytes; Linux only.

    Raises:
        OSError: if the system has no such file or field.
    """
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}.")
