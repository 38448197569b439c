"""The client of a worker: starts the process, sends requests and reads answers."""

import json
import os
import subprocess
from typing import Any

from benchmarks.engine.peers import protocol
from tfdeq.programs.commands import ROOT


class WorkerError(RuntimeError):
    """A worker answered with an error, or has ended."""


class Client:
    """A worker process; use it as a context.

    Args:
        module: dotted name of the worker's module.
        python: the Python interpreter with its framework.
        log: file for the worker's output.
        threads: number of threads in each of its pools.
        return_memory: whether freed memory returns to the system at once; for measuring memory.
    """

    def __init__(
        self, module: str, python: str, log: str, threads: int, return_memory: bool = False
    ):
        self._log_path = log
        environment = {**os.environ, **protocol.environment(threads), "PYTHONPATH": ROOT}
        if return_memory:
            environment.update(protocol.memory_environment())
        self._log = open(log, "w", encoding="utf-8")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [python, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            text=True,
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._process.poll() is None:
            self._process.stdin.close()  # the worker ends at the end of its input
            try:
                self._process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def ask(self, action: str, **request: Any) -> dict[str, Any]:
        """Sends a request and returns the answer.

        Raises:
            WorkerError: if the worker answers with an error, or has ended.
        """
        try:
            self._process.stdin.write(json.dumps({"do": action, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"the worker has ended: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        """Returns the last line that the worker printed; for a traceback, this is the error."""
        self._process.wait()
        with open(self._log_path, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file if line.strip()]
        return lines[-1][:300] if lines else f"status {self._process.returncode}"
