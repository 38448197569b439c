"""The protocol of all workers: requests and answers as JSON lines, residuals, times and memory.

A worker reads one request per line from standard input, {"do": NAME, ...}, and writes one answer per
line to its original standard output; the output of libraries goes to standard error. Requests:

    hello                          -> name, versions, variants
    prepare  path, kind, heads     loads weights and inputs; forgets the case before
    outputs  variant, path         -> evaluations, products, residuals; writes z, u and gradients to path
    time     variant, seconds      -> seconds of each training step, repeated for so long, once at least
    memory   variant               -> bytes of a training step beyond those at rest
    close

A variant is {"solver", "forward_steps", "backward_steps", "tolerance"}; if tolerance is null, the
solver must make all its steps.
"""

import ctypes
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Variant = Mapping[str, Any]


class Worker:
    """A framework with one case; a subclass implements the methods that raise."""

    name = ""
    # solver -> the modes that it supports, "fixed" and "tolerance".
    solvers: Mapping[str, tuple[str, ...]] = {}

    def __init__(self):
        self.arrays: dict[str, np.ndarray] = {}
        self.case: dict[str, Any] = {}
        self._steps: dict[str, Callable[[], Any]] = {}

    def versions(self) -> dict[str, str]:
        """Returns package -> version."""
        raise NotImplementedError

    def load(self) -> None:
        """Makes the framework's tensors from self.arrays and self.case."""
        raise NotImplementedError

    def build(self, variant: Variant) -> Callable[[], Any]:
        """Returns a function that makes one training step and waits for its end."""
        raise NotImplementedError

    def probe(self, variant: Variant) -> dict[str, np.ndarray]:
        """Returns z, u, loss and the gradients "d/x" and "d/NAME" of one training step.

        u is the gradient with respect to a zero that is added to f, which is the solution of the
        backward system.
        """
        raise NotImplementedError

    def count(self, variant: Variant) -> tuple[int, int]:
        """Returns the evaluations of f and the products with its Jacobian in one training step."""
        raise NotImplementedError

    def image_and_product(self, z: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns f(z) and Jᵀu at z."""
        raise NotImplementedError

    # --- the requests ---

    def do_hello(self) -> dict[str, Any]:
        return {"name": self.name, "versions": self.versions(), "solvers": dict(self.solvers)}

    def do_prepare(self, path: str, kind: str, heads: int | None = None) -> dict[str, Any]:
        with np.load(path) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.case = {"kind": kind, "heads": heads}
        self._steps = {}
        self.load()
        return {}

    def do_outputs(self, variant: Variant, path: str) -> dict[str, Any]:
        outputs = self.probe(variant)
        np.savez(path, **outputs)
        evaluations, products = self.count(variant)
        forward, backward = self.residuals(outputs["z"], outputs["u"])
        return {
            "evaluations": evaluations,
            "products": products,
            "forward_residual": forward,
            "backward_residual": backward,
        }

    def do_time(self, variant: Variant, seconds: float) -> dict[str, Any]:
        step = self._step(variant)
        taken: list[float] = []
        while not taken or sum(taken) < seconds:
            started = time.perf_counter()
            step()
            taken.append(time.perf_counter() - started)
        return {"seconds": taken}

    def do_memory(self, variant: Variant) -> dict[str, Any]:
        step = self._step(variant)
        step()
        return {"bytes": min(peak_beyond_rest(step) for _ in range(3))}

    def _step(self, variant: Variant) -> Callable[[], Any]:
        key = json.dumps(variant, sort_keys=True)
        if key not in self._steps:
            self._steps[key] = self.build(variant)
            self._steps[key]()  # compiles
        return self._steps[key]

    def residuals(self, z: np.ndarray, u: np.ndarray) -> tuple[float, float]:
        """Returns the relative residuals of z = f(z) and u = Jᵀu + ∂L/∂z, each for the worst sample."""
        image, product = self.image_and_product(z, u)
        d_z = z - self.arrays["target"]
        return worst_residual(z, image), worst_residual(u, product + d_z)


def worst_residual(value: np.ndarray, image: np.ndarray) -> float:
    """Returns the maximum over samples of ‖image − value‖₂ / ‖image‖₂, computed in float64."""
    value, image = (array.reshape(len(array), -1).astype(np.float64) for array in (value, image))
    difference = np.linalg.norm(image - value, axis=1)
    return float(np.max(difference / (np.linalg.norm(image, axis=1) + 1e-20)))


def peak_beyond_rest(step: Callable[[], Any]) -> int:
    """Returns by how much resident memory rises during step() at its peak, in bytes.

    Linux only. Freed memory must have been returned to the system; see `environment`.
    """
    if sys.platform != "linux":
        raise OSError("Peak memory is read from /proc, which only Linux has.")
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # resets the peak to the current resident memory
    rest = _status_bytes("VmRSS")
    step()
    return _status_bytes("VmHWM") - rest


def _status_bytes(field: str) -> int:
    # As in tfdeq.training.devices.process_memory, which a peer's environment cannot import.
    with open("/proc/self/status", encoding="ascii") as file:
        sizes = dict(line.split(":", 1) for line in file)
    return int(sizes[field].split()[0]) * 1024


def environment(threads: int) -> dict[str, str]:
    """Returns the environment variables of a worker's process."""
    count = str(threads)
    return {
        "BENCHMARK_THREADS": count,
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "NPROC": count,  # XLA's pools in JAX
        "TF_NUM_INTRAOP_THREADS": count,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "JAX_PLATFORMS": "cpu",
    }


def memory_environment() -> dict[str, str]:
    """Returns variables that make freed blocks of 128 KiB or more return to the system at once.

    With oneDNN, TensorFlow uses its own allocator instead of malloc, which keeps freed memory.
    """
    return {
        "MALLOC_MMAP_THRESHOLD_": "131072",
        "MALLOC_TRIM_THRESHOLD_": "131072",
        "TF_ENABLE_ONEDNN_OPTS": "0",
    }


def threads() -> int:
    """Returns the number of threads that this worker may use, and binds the worker to as many cores."""
    count = int(os.environ.get("BENCHMARK_THREADS", "2"))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    return count


def serve(make: Callable[[], Worker]) -> None:
    """Answers requests until "close" or the end of standard input."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # libraries may print
    worker = make()
    for line in sys.stdin:
        request = json.loads(line)
        action = request.pop("do")
        if action == "close":
            return
        try:
            answer = getattr(worker, f"do_{action}")(**request)
        except Exception as error:  # the client continues without this variant
            traceback.print_exc()
            text = (str(error).strip() or "no message").splitlines()[0]
            answer = {"error": f"{type(error).__name__}: {text[:300]}"}
        answers.write(json.dumps(answer) + "\n")
