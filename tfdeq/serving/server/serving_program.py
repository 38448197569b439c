"""Builds and runs `serving_program.cc`: a version in TensorFlow's C++ runtime, without Python."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import named_tensor_pb2

from tfdeq.programs.paths import expanded
from tfdeq.serving.server.isolated import Request

SOURCE = pathlib.Path(__file__).with_name("serving_program.cc")
PROGRAM = "build/serving_program"
_TIMEOUT_SECONDS = 580


class Answers(NamedTuple):
    """The results of the program."""

    outputs: list[dict[str, np.ndarray]]  # one per request
    load_seconds: float
    first_seconds: np.ndarray  # [requests]: of the run that gave the answers
    seconds: np.ndarray  # [rounds, requests]: of the later runs
    elapsed_seconds: float  # of all later runs


def build(target: str | os.PathLike = PROGRAM) -> pathlib.Path:
    """Compiles the program, unless it exists and is not older than its source and TensorFlow.

    Raises:
        FileNotFoundError: if there is no C++ compiler.
        ChildProcessError: with the compiler's error.
    """
    target = expanded(target)
    folder = pathlib.Path(tf.sysconfig.get_lib())
    libraries = [folder / f"libtensorflow_{name}.so.2" for name in ("cc", "framework")]
    newest = max(file.stat().st_mtime for file in (SOURCE, *libraries))
    if target.is_file() and target.stat().st_mtime >= newest:
        return target
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise FileNotFoundError("No g++ was found. Install a C++ compiler, or name one in CXX.")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.{os.getpid()}")
    command = [
        *(compiler, "-std=c++17", "-O1", "-w", "-DEIGEN_MAX_ALIGN_BYTES=64"),
        *(f"-I{tf.sysconfig.get_include()}", str(SOURCE), "-o", str(unfinished)),
        # With --as-needed, the linker would drop the library that registers sessions and kernels.
        *("-Wl,--no-as-needed", f"-L{folder}", f"-Wl,-rpath,{folder}"),
        *(f"-l:{library.name}" for library in libraries),
        "-pthread",
    ]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise ChildProcessError(f"{SOURCE.name} does not compile: {finished.stderr[-2000:]}")
    os.replace(unfinished, target)
    return target


def answer(
    executable: str | os.PathLike,
    path: str | os.PathLike,
    requests: Sequence[Request],
    *,
    rounds: int = 0,
    clients: int = 1,
    disable_xla: bool = False,
) -> Answers:
    """Runs requests with the program in a separate process.

    Args:
        executable: the result of `build`.
        path: a version folder.
        requests: the requests.
        rounds: number of repetitions of all requests afterwards, for timing.
        clients: number of threads that share the repetitions.
        disable_xla: whether to disable XLA, as the stock server does by default.

    Raises:
        ChildProcessError: with the program's own message.
    """
    with tempfile.TemporaryDirectory(prefix="tfdeq-serving-") as folder:
        asked, answered = f"{folder}/requests", f"{folder}/answers"
        with tf.io.TFRecordWriter(asked) as writer:
            for request in requests:
                for message in _to_protos(request):
                    writer.write(message.SerializeToString())
        options = [f"rounds={rounds}", f"clients={clients}"] + ["disable_xla"] * disable_xla
        try:
            finished = subprocess.run(
                [
                    expanded(executable).absolute(),
                    expanded(path).absolute(),
                    asked,
                    answered,
                    *options,
                ],
                env={"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ},
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ChildProcessError(
                f"The C++ program gave no answer in {_TIMEOUT_SECONDS} s; ask it for fewer rounds."
            ) from error
        if finished.returncode:
            raise ChildProcessError(
                f"The C++ program ended with exit code {finished.returncode}: "
                f"{(finished.stderr or finished.stdout).strip()[-2000:]}"
            )
        outputs = _from_records(tf.data.TFRecordDataset(answered).as_numpy_iterator())
    found = json.loads(finished.stdout)
    return Answers(
        outputs,
        found["load_seconds"],
        np.array(found["first_seconds"]),
        np.array(found["seconds"]).reshape(rounds, len(requests)),
        found["elapsed_seconds"],
    )


def _to_protos(request: Request) -> Iterator[Any]:
    """Returns a message without a tensor for the signature, then one for each input."""
    yield named_tensor_pb2.NamedTensorProto(name=request.signature)
    for name, value in request.inputs.items():
        yield named_tensor_pb2.NamedTensorProto(name=name, tensor=tf.make_tensor_proto(value))


def _from_records(records: Iterable[bytes]) -> list[dict[str, np.ndarray]]:
    outputs: list[dict[str, np.ndarray]] = []
    for record in records:
        message = named_tensor_pb2.NamedTensorProto.FromString(record)
        if message.HasField("tensor"):
            outputs[-1][message.name] = tf.make_ndarray(message.tensor)
        else:
            outputs.append({})
    return outputs
