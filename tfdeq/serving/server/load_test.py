"""A mix of requests in TensorFlow's C++ runtime, and the cost of each tolerance."""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfdeq.serving.server.runtime import Runtime

PERCENTILES = (50, 90, 99)


class Sample(NamedTuple):
    """One example's answer."""

    tolerance: float
    seconds: float  # of the call with this example
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
    """Answers a number of requests from several clients that never pause.

    Args:
        model: a loaded version.
        signature: name of the signature.
        examples: input name -> [N, ...].
        mix: tolerance -> share of the examples with it.
        requests: total number of calls.
        clients: number of threads; each waits for an answer before its next call.
        batch_size: number of examples per call.
        seed: seed of the random choice.

    Returns:
        The samples, and the total seconds.
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
    """Returns tolerance -> share, from texts TOLERANCE:SHARE.

    Raises:
        ValueError: for another form, or numbers out of range.
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
