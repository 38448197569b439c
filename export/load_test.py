"""Replays a mix of requests through TensorFlow's C++ runtime, and prints the cost of each tolerance.

    python -m export.load_test --model=runs/quickstart/export/1 --mix=0.1:0.5,0.01:0.3,0.0001:0.2

The inputs are the version's warm-up records; each example gets its own tolerance from the mix. Each client
sends one batch after the other. Batches mix examples with different tolerances, as on a server.
"""

import pathlib

import numpy as np
from absl import flags

from tfdeq.programs import program
from tfdeq.programs.workdir import write_json
from tfdeq.serving.server.load_test import parse_mix, replay, summary
from tfdeq.serving.server.runtime import Runtime
from tfdeq.serving.versions import manifest, warm_up

FLAGS = flags.FLAGS


def main() -> None:
    mix = parse_mix(FLAGS.mix)
    manifest.require_whole(FLAGS.model)
    records = [
        inputs
        for name, inputs in warm_up.read(pathlib.Path(FLAGS.model))
        if name == FLAGS.signature
    ]
    if not records:
        raise ValueError(
            f"{FLAGS.model!r} has no warm-up records of the signature {FLAGS.signature!r}: real inputs "
            "come from there. Export it with examples."
        )
    examples = max(records, key=lambda inputs: len(inputs["tolerance"]))
    examples = {**examples, "max_steps": np.full_like(examples["max_steps"], FLAGS.max_steps)}
    model = Runtime(FLAGS.model)
    settings = {"clients": FLAGS.clients, "batch_size": FLAGS.batch_size, "seed": FLAGS.seed}
    # The first calls load kernels; a server makes such calls before it accepts requests.
    replay(model, FLAGS.signature, examples, mix, requests=FLAGS.clients, **settings)
    samples, elapsed = replay(
        model, FLAGS.signature, examples, mix, requests=FLAGS.requests, **settings
    )
    found = summary(samples, elapsed, FLAGS.requests)
    print(
        f"{FLAGS.requests} requests of {FLAGS.batch_size} from {FLAGS.clients} clients: "
        f"{found['requests_per_second']:.1f} requests/s, {found['examples_per_second']:.1f} examples/s."
    )
    print("tolerance  examples  p50 ms  p90 ms  p99 ms  steps (most)  largest residual  converged")
    for row in found["by_tolerance"]:
        print(
            f"{row['tolerance']:<9g}  {row['examples']:>8}  {row['p50_ms']:>6.1f}  {row['p90_ms']:>6.1f}"
            f"  {row['p99_ms']:>6.1f}  {row['mean_steps']:>5.1f} ({row['most_steps']:>4})  "
            f"{row['largest_residual']:>16.1e}  {row['converged']:>9.0%}"
        )
    if FLAGS.report:
        write_json(FLAGS.report, {"model": FLAGS.model, "mix": FLAGS.mix, **settings, **found})
        print(f"Report: {FLAGS.report}")


def define_flags() -> None:
    flags.DEFINE_string("model", None, "The version folder: OUTPUT/VERSION.")
    flags.DEFINE_string("signature", "serving_default", "Signature to call.")
    flags.DEFINE_list(
        "mix", ["0.1:0.5", "0.01:0.3", "0.0001:0.2"], "TOLERANCE:SHARE pairs; 0: the model's own."
    )
    flags.DEFINE_integer("max_steps", 0, "Steps at most for every example; 0: the model's own.", 0)
    flags.DEFINE_integer("requests", 200, "Calls in all.", lower_bound=1)
    flags.DEFINE_integer(
        "clients", 1, "Number of threads that send requests at the same time.", lower_bound=1
    )
    flags.DEFINE_integer("batch_size", 1, "Examples per call.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed for drawing examples and tolerances.")
    flags.DEFINE_string("report", None, "JSON to write. Default: none.")
    flags.mark_flag_as_required("model")


def run() -> None:
    """Entry point of the console script."""
    define_flags()
    program.run(main)


if __name__ == "__main__":
    run()
