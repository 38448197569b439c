"""A small separate disk for a process, which fills up or becomes read-only at a chosen moment."""

import ctypes
import importlib
import multiprocessing.util
import os
import shutil
import subprocess
import sys

MAY_NOT_MOUNT = 77


def put_on_a_disk(folder, place, call, how):
    """Mounts folder/disk, visible only to this process, and fills it or makes it read-only at a call."""
    disk = os.path.join(folder, "disk")
    os.makedirs(disk, exist_ok=True)
    # CLONE_NEWNS: only this process sees the mount, which ends with it.
    if ctypes.CDLL(None).unshare(0x00020000):
        sys.exit(MAY_NOT_MOUNT)
    for command in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "-o", "size=16m", "none", disk],
    ):
        if subprocess.run(command, check=False).returncode:
            sys.exit(MAY_NOT_MOUNT)
    module, names = place.split(":")
    owner = importlib.import_module(module)
    *owners, name = names.split(".")
    for part in owners:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), [0]

    def function(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call:
            if how == "full":
                with open(os.path.join(disk, "filler"), "wb", buffering=0) as file:
                    try:
                        while True:
                            file.write(bytes(4096))
                    except OSError:
                        pass
            else:
                subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        return original(*args, **kwargs)

    setattr(owner, name, function)
    # The final contents of the disk, for the test and for the next process.
    left = os.path.join(folder, "left")
    multiprocessing.util.Finalize(None, shutil.copytree, (disk, left), exitpriority=10)
