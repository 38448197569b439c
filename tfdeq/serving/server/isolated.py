"""Answers requests with an exported version, in a fresh process that cannot import this project.

`answer` starts that process: this file, by its path, in Python's isolated mode (no PYTHONPATH, no
current folder), from an empty folder, with an import hook that refuses the named packages. It uses only
the standard library and NumPy, and TensorFlow if that is the runtime.
"""

import importlib.abc
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

# Runtime -> packages that its process must not import.
RUNTIMES = {
    "tensorflow": ("tfdeq", "trainers", "export"),
    "c": ("tfdeq", "trainers", "export", "keras", "tensorflow"),
}
TIMEOUT_SECONDS = 300


class Request(NamedTuple):
    """One call of a signature."""

    name: str  # for reports
    signature: str
    inputs: dict[str, np.ndarray]
    carried: tuple[str, ...] = ()  # inputs from the last request's outputs with the same names
    may_fail: bool = False  # its output is {"error": text} if it fails, else {}


class Answers(NamedTuple):
    """The results of the process."""

    outputs: list[dict[str, np.ndarray]]  # one per request
    # How each blocked import failed, the imported packages, seconds, and for "c" its ops.
    facts: dict[str, Any]


class IsolationError(ChildProcessError):
    """The process failed; the message has the end of its output."""


def answer(
    path: str | os.PathLike,
    requests: Sequence[Request],
    runtime: str,
    timeout: float = TIMEOUT_SECONDS,
) -> Answers:
    """Runs requests in a separate process.

    Args:
        path: a version folder.
        requests: the requests.
        runtime: "tensorflow" (tf.saved_model.load) or "c" (`tfdeq.serving.server.runtime`, without Python's
            TensorFlow).
        timeout: seconds.

    Raises:
        IsolationError: if the process failed or took longer.
    """
    with tempfile.TemporaryDirectory(prefix="tfdeq-isolated-") as folder:
        job = {
            "path": os.path.abspath(path),
            "signatures": [request.signature for request in requests],
            "carried": [request.carried for request in requests],
            "may_fail": [request.may_fail for request in requests],
            "runtime": runtime,
            "blocked": RUNTIMES[runtime],
        }
        pathlib.Path(folder, "job.json").write_text(json.dumps(job))
        np.savez(
            pathlib.Path(folder, "inputs.npz"), **_pack([request.inputs for request in requests])
        )
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
        }
        command = [sys.executable, "-I", os.path.abspath(__file__), folder]
        try:
            # On a timeout, run() ends the process that it started, by its id.
            process = subprocess.run(
                command, cwd=folder, env={"TF_CPP_MIN_LOG_LEVEL": "2", **environment},
                capture_output=True, text=True, timeout=timeout, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise IsolationError(
                f"The {runtime} runtime gave no answer in {timeout:g} s."
            ) from error
        if process.returncode:
            raise IsolationError(
                f"The {runtime} runtime ended with exit code {process.returncode}: "
                f"{(process.stderr or process.stdout).strip()[-2000:]}"
            )
        facts = json.loads(pathlib.Path(folder, "facts.json").read_text())
        return Answers(_unpack(pathlib.Path(folder, "outputs.npz"), len(requests)), facts)


class _Blocked(importlib.abc.MetaPathFinder):
    """Refuses to import packages."""

    def __init__(self, packages: Sequence[str]):
        self.packages = frozenset(packages)

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in self.packages:
            raise ImportError(f"import of {fullname} is blocked in this process")


def _serve(folder: pathlib.Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    sys.meta_path.insert(0, _Blocked(job["blocked"]))
    facts: dict[str, Any] = {"blocked": {name: _refusal(name) for name in job["blocked"]}}
    started = time.perf_counter()
    run, found = _LOADERS[job["runtime"]](job["path"])
    facts.update(found)
    facts["load_seconds"] = round(time.perf_counter() - started, 3)
    inputs = _unpack(folder / "inputs.npz", len(job["signatures"]))
    started = time.perf_counter()
    outputs: list[dict[str, np.ndarray]] = []
    asked = zip(job["signatures"], inputs, job["carried"], job["may_fail"], strict=True)
    for signature, fed, carried, may_fail in asked:
        try:
            outputs.append(run(signature, {**fed, **{name: outputs[-1][name] for name in carried}}))
        except Exception as error:
            if not may_fail:
                raise
            outputs.append({"error": np.array(str(error))})
        else:
            if may_fail:
                outputs[-1] = {}
    facts["run_seconds"] = round(time.perf_counter() - started, 3)
    top = {name.partition(".")[0] for name in sys.modules}
    present = sorted(top.intersection(job["blocked"]))
    if present:
        raise RuntimeError(f"These packages should not be here: {', '.join(present)}.")
    facts["imported"] = sorted(top.intersection(("keras", "tensorflow")))
    np.savez(folder / "outputs.npz", **_pack(outputs))
    (folder / "facts.json").write_text(json.dumps(facts))


def _refusal(package: str) -> str:
    """Returns the error message of importing a package."""
    try:
        __import__(package)
    except ImportError as error:
        return str(error)
    raise RuntimeError(f"{package} could be imported; this process should not see it.")


def _load_with_tensorflow(path: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    import tensorflow as tf

    loaded = tf.saved_model.load(path)

    def run(signature, inputs):
        fed = {name: tf.constant(value) for name, value in inputs.items()}
        return {name: value.numpy() for name, value in loaded.signatures[signature](**fed).items()}

    return run, {}


def _load_with_c(path: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    # By path, because the file's package is blocked.
    file = pathlib.Path(__file__).with_name("runtime.py")
    runtime = runpy.run_path(str(file))
    return runtime["Runtime"](path).run, {"runnable_ops": sorted(runtime["runnable_ops"]())}


_LOADERS = {"tensorflow": _load_with_tensorflow, "c": _load_with_c}


def _pack(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    packed = {}
    for index, row in enumerate(rows):
        for name, value in row.items():
            if value.dtype != object:
                packed[f"{index}/{name}"] = value
                continue
            # NumPy's own type of bytes drops zeros at their end.
            packed[f"{index}/{name}/lengths"] = np.array([len(each) for each in value], np.int64)
            packed[f"{index}/{name}/bytes"] = np.frombuffer(b"".join(value), np.uint8)
    return packed


def _unpack(path: pathlib.Path, size: int) -> list[dict[str, np.ndarray]]:
    rows: list[dict[str, np.ndarray]] = [{} for _ in range(size)]
    with np.load(path) as arrays:
        for key in arrays.files:
            index, name, *part = key.split("/")
            if not part:
                rows[int(index)][name] = arrays[key]
            elif part == ["lengths"]:
                ends = np.cumsum(arrays[key])
                parts = np.split(arrays[f"{index}/{name}/bytes"], ends[:-1])
                rows[int(index)][name] = np.empty([len(ends)], object)
                rows[int(index)][name][:] = [each.tobytes() for each in parts[: len(ends)]]
    return rows


if __name__ == "__main__":
    _serve(pathlib.Path(sys.argv[1]))
