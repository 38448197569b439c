"""Training runs in processes of their own, a few at a time."""

import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def cores_per_process(processes: int) -> int:
    """Returns the share of the processor's cores that each of some processes gets, at least 1."""
    return max(1, (os.cpu_count() or 1) // processes)


class Runs:
    """Runs of a trainer, each in a process of its own with one share of the processor's cores.

    Use as a context: what still runs when it is left by an error is ended.

    Args:
        module: the trainer, for example "trainers.language_model".
        parallel: processes at a time, >= 1. Default 1.
    """

    def __init__(self, module: str, parallel: int = 1):
        self._module = module
        # Beside one run there is the starting process, which may train too.
        self._threads = str(cores_per_process(max(parallel, 2)))
        self._pool = ThreadPoolExecutor(max_workers=parallel)
        self._processes: list[subprocess.Popen] = []
        self._futures: list[Future] = []

    def __enter__(self) -> "Runs":
        return self

    def __exit__(self, kind, *_: Any) -> None:
        if kind is not None:
            for future in self._futures:
                future.cancel()
            for process in self._processes:
                if process.poll() is None:
                    process.terminate()
        self._pool.shutdown()

    def start(self, workdir: str, flags: Mapping[str, Any]) -> None:
        """Queues a run; its output goes to WORKDIR.log."""
        self._futures.append(self._pool.submit(self._run, workdir, dict(flags)))

    def wait(self) -> None:
        """Returns when all runs are done.

        Raises:
            RuntimeError: for the first run that failed; its folder keeps its checkpoints.
        """
        for future in self._futures:
            future.result()

    def _run(self, workdir: str, flags: Mapping[str, Any]) -> None:
        os.makedirs(os.path.dirname(workdir) or ".", exist_ok=True)
        arguments = [f"--{name}={value}" for name, value in flags.items() if value is not None]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([_ROOT, os.environ.get("PYTHONPATH", "")]).rstrip(":"),
            "TF_NUM_INTRAOP_THREADS": self._threads,
            "OMP_NUM_THREADS": self._threads,
        }
        with open(f"{workdir}.log", "a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", self._module, f"--workdir={workdir}", *arguments],
                stdout=log,
                stderr=log,
                env=environment,
            )
            self._processes.append(process)
            status = process.wait()
        if status:
            raise RuntimeError(
                f"The run in {workdir} ended with status {status}; {workdir}.log says why. The same "
                "command goes on from its last checkpoint."
            )
        print(f"Finished the run in {workdir}.", flush=True)
