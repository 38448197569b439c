"""Builds and runs `serving_program.cc`: a version in TensorFlow's C++ runtime, without Python.

    python -m export.serving_program --model=runs/quickstart/export/1

Answers the version's warm-up records, in turns, and prints how long each signature and batch size
takes. `make serving_program` builds the program alone.
"""

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
from absl import flags
from tensorflow.core.protobuf import named_tensor_pb2

from export import manifest, warm_up
from export.isolated import Request
from trainers import program
from trainers.paths import expanded

FLAGS = flags.FLAGS
SOURCE = pathlib.Path(__file__).with_name("serving_program.cc")
PROGRAM = "build/serving_program"
_TIMEOUT_SECONDS = 580


class Answers(NamedTuple):
    """What the program returned."""

    outputs: list[dict[str, np.ndarray]]  # one a request
    load_seconds: float
    first_seconds: np.ndarray  # [requests]: the run that gave the answers
    seconds: np.ndarray  # [rounds, requests]: the later ones
    elapsed_seconds: float  # of all the later ones


def build(target: str | os.PathLike = PROGRAM) -> pathlib.Path:
    """Compiles the program, unless it is there and no older than its source and TensorFlow.

    Raises:
        FileNotFoundError: no C++ compiler.
        ChildProcessError: the compiler's error.
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
        # As needed, the linker would drop the library that registers sessions and kernels.
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
    """Runs requests in a process of the program.

    Args:
        executable: from `build`.
        path: a version folder.
        requests: what to ask.
        rounds: how often to repeat them all afterwards, for the times.
        clients: threads that share the repetitions.
        disable_xla: as the stock server does by default.

    Raises:
        ChildProcessError: the program's own words.
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
    """A message without a tensor for the signature, then one for each input."""
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


def main() -> None:
    executable = build(FLAGS.program)
    if FLAGS.model is None:
        print(f"Built {executable}. Time a version: --model=OUTPUT/VERSION")
        return
    manifest.require_whole(FLAGS.model)
    records = warm_up.read(pathlib.Path(FLAGS.model))
    if not records:
        raise ValueError(f"{FLAGS.model!r} has no warm-up records to answer.")
    requests = [Request("warm-up", *record) for record in records]
    found = answer(executable, FLAGS.model, requests, rounds=FLAGS.rounds, clients=FLAGS.clients)
    print(f"Loaded in {found.load_seconds:.2f} s; {FLAGS.clients} clients, {FLAGS.rounds} rounds.")
    print(f"{'signature':<16} {'batch':>5} {'first ms':>9} {'median ms':>9} {'slowest ms':>10}")
    for index, request in enumerate(requests):
        times = 1e3 * found.seconds[:, index]
        batch = len(request.inputs["tolerance"])
        print(
            f"{request.signature:<16} {batch:>5} {1e3 * found.first_seconds[index]:>9.1f} "
            f"{np.median(times):>9.1f} {times.max():>10.1f}"
        )


def define_flags() -> None:
    flags.DEFINE_string("model", None, "The version folder to time. Default: build only.")
    flags.DEFINE_string("program", PROGRAM, "Where to build the program.")
    flags.DEFINE_integer("rounds", 10, "Repetitions of every record.", lower_bound=1)
    flags.DEFINE_integer("clients", 1, "Threads that ask at once.", lower_bound=1)


def run() -> None:
    """Entry point of the console script."""
    define_flags()
    program.run(main)


if __name__ == "__main__":
    run()
