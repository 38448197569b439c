"""What each signature of a version costs: the size of its graph, and the time of an answer."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeq.serving.signatures.signature import Signature
from tfdeq.serving.versions import warm_up

ROUNDS = 5


def measured(
    signatures: Mapping[str, Signature], examples: Mapping[str, np.ndarray] | None
) -> dict[str, dict[str, Any]]:
    """Returns name -> the costs of a signature, for the card.

    Args:
        signatures: the signatures of a version.
        examples: as for `warm_up.requests`; None: no answer is timed.

    Returns:
        `graph_bytes`: the size of the signature's graph with its functions, without the weights, which
        all signatures share. `answer_milliseconds`, if there are examples: the median time of an answer to
        a single example in this process, after the first.

    Raises:
        tf.errors.OpError: if a signature fails to answer; such a version should not be published.
    """
    found: dict[str, dict[str, Any]] = {
        name: {"graph_bytes": signature.function.graph.as_graph_def().ByteSize()}
        for name, signature in signatures.items()
    }
    if examples is not None:
        for name, inputs in warm_up.requests(signatures, examples, [1]):
            seconds = _seconds(signatures[name].function, inputs)
            found[name]["answer_milliseconds"] = round(1e3 * seconds, 2)
    return found


def line(name: str, cost: Mapping[str, Any]) -> str:
    """Returns the costs of a signature in words."""
    text = f"{name}: {cost['graph_bytes']:,} bytes of graph"
    if "answer_milliseconds" in cost:
        text += f", {cost['answer_milliseconds']:.1f} ms for one example"
    return text


def _seconds(function: Any, inputs: Mapping[str, np.ndarray]) -> float:
    tensors = {name: tf.constant(value) for name, value in inputs.items()}
    function(**tensors)  # optimises the graph
    found = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        function(**tensors)
        found.append(time.perf_counter() - started)
    return statistics.median(found)
