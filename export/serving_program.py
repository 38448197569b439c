"""Builds and runs `serving_program.cc`: a version in TensorFlow's C++ runtime, without Python.

    python -m export.serving_program --model=runs/quickstart/export/1

Answers the version's warm-up records, one after the other in each round, and prints the times of each
signature and batch size. `make serving_program` only builds the program.
"""

import pathlib

import numpy as np
from absl import flags

from tfdeq.programs import program
from tfdeq.serving.server.isolated import Request
from tfdeq.serving.server.serving_program import PROGRAM, answer, build
from tfdeq.serving.versions import manifest, warm_up

FLAGS = flags.FLAGS


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
    flags.DEFINE_integer(
        "clients", 1, "Number of threads that send requests at the same time.", lower_bound=1
    )


def run() -> None:
    """Entry point of the console script."""
    define_flags()
    program.run(main)


if __name__ == "__main__":
    run()
