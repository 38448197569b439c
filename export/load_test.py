"""Replays a mix of requests through TensorFlow's C++ runtime, and says what each tolerance costs.

    python -m export.load_test --model=runs/quickstart/export/1 --mix=0.1:0.5,0.01:0.3,0.0001:0.2

The inputs are the version's warm-up records, each example by itself with a tolerance of the mix. Clients
ask one batch after the other; batches are joined from examples of any tolerance, as a server joins
them.
"""

import pathlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from export import manifest, warm_up
from export.runtime import Runtime
from trainers import program
from trainers.workdir import write_json

FLAGS = flags.FLAGS
PERCENTILES = (50, 90, 99)


class Sample(NamedTuple):
    """One example's answer."""

    tolerance: float
    seconds: float  # of the call that it was in
    steps: int
    residual: float
    status: int


def replay(
    model: Runtime,
    signature: str,
    examples: Mapping[str, np.ndarray],
    mix: Mapping[float, float],
    *,
    requests: int,
    clients: int = 1,
    batch_size: int = 1,
    seed: int = 0,
) -> tuple[list[Sample], float]:
    """Answers a number of requests, shared among clients that ask without pause.

    Args:
        model: a loaded version.
        signature: its name.
        examples: input name -> [N, ...].
        mix: tolerance -> share of the examples that ask for it.
        requests: calls in all.
        clients: threads; each waits for its answer before it asks again.
        batch_size: examples a call.
        seed: of the draw.

    Returns:
        The samples, and the seconds that all of it took.
    """
    random = np.random.default_rng(seed)
    shares = np.array(list(mix.values()))
    drawn = random.choice(list(mix), size=(requests, batch_size), p=shares / shares.sum())
    count = len(next(iter(examples.values())))
    rows = random.integers(count, size=(requests, batch_size))
    found: list[list[Sample]] = [[] for _ in range(requests)]
    failed: list[BaseException] = []
    numbers = iter(range(requests))
    lock = threading.Lock()

    def ask() -> None:
        while not failed:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            inputs = {name: value[rows[number]] for name, value in examples.items()}
            inputs["tolerance"] = drawn[number].astype(np.float32)
            started = time.perf_counter()
            try:
                answer = model.run(signature, inputs)
            except BaseException as error:
                failed.append(error)
                return
            seconds = time.perf_counter() - started
            found[number] = [
                Sample(tolerance, seconds, *(answer[name][row].item() for name in _ANSWERED))
                for row, tolerance in enumerate(drawn[number].tolist())
            ]

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - started
    if failed:
        raise failed[0]
    return [sample for samples in found for sample in samples], elapsed


_ANSWERED = ("steps", "residual", "status")


def summary(samples: Sequence[Sample], elapsed: float, requests: int) -> dict[str, Any]:
    """Returns throughput, and for each tolerance latency percentiles, steps and residuals."""
    rows = []
    for tolerance in sorted({sample.tolerance for sample in samples}, reverse=True):
        chosen = [sample for sample in samples if sample.tolerance == tolerance]
        milliseconds = 1e3 * np.array([sample.seconds for sample in chosen])
        steps = np.array([sample.steps for sample in chosen])
        rows.append(
            {
                "tolerance": tolerance,
                "examples": len(chosen),
                **{
                    f"p{percentile}_ms": float(np.percentile(milliseconds, percentile))
                    for percentile in PERCENTILES
                },
                "mean_steps": float(steps.mean()),
                "most_steps": int(steps.max()),
                "largest_residual": max(sample.residual for sample in chosen),
                "converged": float(np.mean([sample.status == 0 for sample in chosen])),
            }
        )
    return {
        "seconds": elapsed,
        "requests_per_second": requests / elapsed,
        "examples_per_second": len(samples) / elapsed,
        "by_tolerance": rows,
    }


def parse_mix(texts: Sequence[str]) -> dict[float, float]:
    """Returns tolerance -> share of TOLERANCE:SHARE texts.

    Raises:
        ValueError: another form, or numbers out of range.
    """
    mix = {}
    for text in texts:
        try:
            tolerance, share = (float(number) for number in text.split(":"))
        except ValueError:
            tolerance = share = -1.0
        if not (tolerance >= 0 and 0 < share < float("inf")):
            raise ValueError(
                "--mix takes TOLERANCE:SHARE pairs, separated by commas, tolerances >= 0 (0: the "
                f"model's own) and shares > 0; received {text!r}."
            )
        mix[tolerance] = share
    return mix


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
    # The first calls load kernels; a server has made them before it takes requests.
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
    flags.DEFINE_string("signature", "serving_default", "Which signature to ask.")
    flags.DEFINE_list(
        "mix", ["0.1:0.5", "0.01:0.3", "0.0001:0.2"], "TOLERANCE:SHARE pairs; 0: the model's own."
    )
    flags.DEFINE_integer("max_steps", 0, "Steps at most for every example; 0: the model's own.", 0)
    flags.DEFINE_integer("requests", 200, "Calls in all.", lower_bound=1)
    flags.DEFINE_integer("clients", 1, "Threads that ask at once.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 1, "Examples a call.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the draw of examples and tolerances.")
    flags.DEFINE_string("report", None, "JSON to write. Default: none.")
    flags.mark_flag_as_required("model")


def run() -> None:
    """Entry point of the console script."""
    define_flags()
    program.run(main)


if __name__ == "__main__":
    run()
