"""Training runs in separate processes, a few at a time."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tfdeq.programs import commands
from tfdeq.programs.preemption import EXIT_CODE, Preempted
from tfdeq.programs.workdir import writing

# Status of a run that was asked to end; the signal's own if the run was still starting.
_ASKED = (EXIT_CODE, -signal.SIGTERM)


def cores_per_process(processes: int) -> int:
    """Returns the number of cores for each of some processes, at least 1."""
    return max(1, (os.cpu_count() or 1) // processes)


class RunFailed(RuntimeError):
    """A run ended with an error, which is in its log."""


class Runs:
    """Runs of a trainer, each in a separate process with its share of the cores.

    Use it as a context: if an error leaves the context, running processes are ended.

    Args:
        program: the trainer, for example "trainers.language_model".
        parallel: number of processes at a time, >= 1. Default 1.
    """

    def __init__(self, program: str, parallel: int = 1):
        self._program = program
        self._threads = str(cores_per_process(parallel))
        self._pool = ThreadPoolExecutor(max_workers=parallel)
        self._processes: list[subprocess.Popen] = []
        self._futures: list[Future] = []
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> "Runs":
        return self

    def __exit__(self, kind, *_: Any) -> None:
        if kind is not None:
            for future in self._futures:
                future.cancel()
            with self._lock:
                self._closed = True
                for process in self._processes:
                    if process.poll() is None:
                        process.terminate()
        self._pool.shutdown()

    def start(self, workdir: str, flags: Mapping[str, Any]) -> None:
        """Queues a run; its output goes to WORKDIR.log."""
        self._futures.append(self._pool.submit(self._run, workdir, dict(flags)))

    def wait(self, may_fail: bool = False) -> None:
        """Waits until all runs are done.

        Args:
            may_fail: whether to only print the errors of runs instead of raising an error.

        Raises:
            RunFailed: for the first run that failed; its checkpoints remain in its folder.
            Preempted: if none failed, but one was asked to end.
        """
        ended = []
        for future in self._futures:
            try:
                ended.append(future.result())
            except RunFailed as error:
                if not may_fail:
                    raise
                print(error, flush=True)
        if any(status in _ASKED for status in ended):
            raise Preempted

    def _start(self, command: list[str], log: Any, environment: Mapping[str, str]):
        with self._lock:
            if self._closed:
                raise RunFailed("No further run is started, because the program is ending.")
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, preexec_fn=_end_with_parent
            )
            self._processes.append(process)
            return process

    def _run(self, workdir: str, flags: Mapping[str, Any]) -> int:
        """Returns the exit status of the run."""
        path = f"{workdir}.log"
        arguments = [f"--{n}={flag_text(value)}" for n, value in flags.items() if value is not None]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([commands.ROOT, os.environ.get("PYTHONPATH", "")]).rstrip(
                ":"
            ),
            "TF_NUM_INTRAOP_THREADS": self._threads,
            "OMP_NUM_THREADS": self._threads,
        }
        with writing(path):
            os.makedirs(os.path.dirname(workdir) or ".", exist_ok=True)
            file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        with file as log:
            process = self._start(
                # -P: do not import a package with the same name from the current folder.
                [
                    sys.executable,
                    "-P",
                    "-m",
                    commands.module_of(self._program),
                    f"--workdir={workdir}",
                    *arguments,
                ],
                log,
                environment,
            )
            status = process.wait()
        if status in _ASKED:
            print(
                f"The run in {workdir} was stopped on request. Run the same command again to resume "
                "from its last checkpoint.",
                flush=True,
            )
        elif status:
            raise RunFailed(
                f"The run in {workdir} failed with status {status}; see {workdir}.log. Run the same "
                "command again to resume from its last checkpoint."
            )
        else:
            print(f"Finished the run in {workdir}.", flush=True)
        return status


def flag_text(value: Any) -> str:
    """Returns a flag's value as on a command line."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Called in a new process: the kernel ends it when its parent dies for any reason.

    With SIGKILL, because the same command may be started again while the process would still be saving.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
