"""Checks that a model card agrees with the model and the version's graph."""

import json
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfdeq.serving.server.isolated import Request
from tfdeq.serving.verification.checks import Check

# A request larger than this is not sent to test its refusal: 256 MiB.
_MOST_SENT = 2**26
_SHOWN = 3
NAME = "the card says what the model says"


def problem_of(card: Mapping[str, Any]) -> str:
    """Returns the reason why a card cannot be read; "" if it can."""
    signatures = card.get("signatures")
    if not isinstance(signatures, Mapping) or "serving_default" not in signatures:
        return "the card names no signature serving_default"
    for name, signature in signatures.items():
        for side in ("inputs", "outputs"):
            tensors = signature.get(side) if isinstance(signature, Mapping) else None
            if not isinstance(tensors, Mapping) or not all(map(_is_tensor, tensors.values())):
                return f"the card says no dtype and shape of the {side} of {name}"
    limit = card.get("max_steps_limit")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        return f"max_steps_limit is {limit!r} in the card"
    return ""


def _is_tensor(described: Any) -> bool:
    if not isinstance(described, Mapping) or not isinstance(described.get("dtype"), str):
        return False
    sizes = described.get("shape")
    return isinstance(sizes, list) and all(size is None or isinstance(size, int) for size in sizes)


def check_card(
    expected: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    path: pathlib.Path,
    card: Mapping[str, Any],
) -> Check:
    """Checks every entry of the card that follows from the model or the graph.

    The signatures are traced again, from the model and the settings in the card. The limits that an
    export may choose must be those of the graph, which `over_limit_request` and requests above
    `max_steps_limit` test.

    Args:
        expected: the card's settings -> the entries according to the model.
    """
    try:
        # In the form of a card that was written and read.
        found = json.loads(json.dumps(expected(card)))
    except Exception as error:  # any error that a card with other settings causes
        text = f"its settings are none that this model can be exported with: {error}"
        return Check(NAME, False, text, {"wrong": ["settings"]})
    wrong = differences(found, {key: card.get(key) for key in found})
    wrong += _graphdifferences(path, card)
    text = f"{len(found)} entries: {', '.join(found)}"
    if wrong:
        more = f" ({len(wrong)} findings)" if len(wrong) > _SHOWN else ""
        text = f"{'; '.join(wrong[:_SHOWN])}{more}"
    return Check(NAME, not wrong, text, {"wrong": wrong})


def check_records(records: Sequence[Request], card: Mapping[str, Any]) -> Check:
    """Checks for a warm-up record of each signature at each batch size, if the card lists records."""
    sizes = card.get("allowed_batch_sizes") or []
    promised = [
        (signature, size)
        for signature in card.get("signatures") or {}
        for size in (sizes if card.get("warm_up_records") else [])
    ]
    found = [
        (record.signature, min(map(len, record.inputs.values()), default=0)) for record in records
    ]
    missing = [f"{name}, batch of {size}" for name, size in promised if (name, size) not in found]
    passed = sorted(found) == sorted(promised)
    text = f"{len(found)} records: each signature at each of the batch sizes {sizes}"
    if not promised and not found:
        text = "the card promises none, and there is none"
    if not passed:
        lack = f"; missing: {', '.join(missing[:_SHOWN])}" if missing else ""
        text = f"{len(found)} records, the card promises {len(promised)}{lack}"
    return Check("warm-up records are those of the card", passed, text, {"missing": missing})


def over_limit_request(card: Mapping[str, Any]) -> Request | None:
    """Returns a request of zeros with more numbers than the card allows; None if it would be too large."""
    name, signature = next(iter(card["signatures"].items()))
    limit = signature.get("max_request_values")
    if not isinstance(limit, int) or not 0 < limit < _MOST_SENT:
        return None
    tensors = signature["inputs"]
    # One long row if a tensor's shape leaves a size open, else many rows; neither is computed.
    longest = next((each for each in tensors if None in tensors[each]["shape"][1:]), None)
    row = sum(math.prod(size or 1 for size in each["shape"][1:]) for each in tensors.values())
    rows = limit // row + 1 if longest is None else 1
    inputs = {}
    for each, tensor in tensors.items():
        sizes = [size or 1 for size in tensor["shape"][1:]]
        if each == longest:
            sizes[tensor["shape"][1:].index(None)] = limit + 1
        inputs[each] = np.zeros([rows, *sizes], tf.as_dtype(tensor["dtype"]).as_numpy_dtype)
    return Request("over the limit", name, inputs, may_fail=True)


def check_over_limit(card: Mapping[str, Any], error: str | None, runtime: str) -> Check:
    """Checks that a request above the card's limit is refused with a message that states the limit.

    Args:
        error: the runtime's message; None if it answered.
    """
    limits = {signature.get("max_request_values") for signature in card["signatures"].values()}
    limit = next(iter(limits))
    problem = ""
    if len(limits) > 1:
        problem = f"the card names several limits: {sorted(limits)}"
    elif error is None:
        problem = f"a request of more than {limit:,} numbers, the card's limit, was answered"
    elif not re.search(rf"\b{limit}\b", error):
        problem = f"a request above {limit:,} numbers was refused in other words: {error[:300]}"
    text = problem or f"more than {limit:,} numbers are refused"
    return Check(f"{runtime}: the limit of a request's size", not problem, text, {})


def differences(expected: Any, found: Any, place: str = "") -> list[str]:
    """Describes where two JSON values differ; places are like signatures.score.inputs.tokens.dtype."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        return [
            line
            for key in {**expected, **found}
            for line in differences(expected.get(key), found.get(key), f"{place}{key}.")
        ]
    if _unnumbered(expected) == _unnumbered(found):
        return []
    said, is_so = (json.dumps(value, ensure_ascii=False)[:80] for value in (found, expected))
    return [f"{place[:-1]}: the card says {said}, it is {is_so}"]


def _unnumbered(value: Any) -> Any:
    """Removes the number in a model's name, which Keras chooses differently in every process."""
    return re.sub(r"_\d+'$", "'", value) if isinstance(value, str) else value


def _graphdifferences(path: pathlib.Path, card: Mapping[str, Any]) -> list[str]:
    """Describes where the card's signatures and batching differ from those of the served graph."""
    graph = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    (meta_graph,) = graph.meta_graphs
    served = {
        name: {
            "inputs": _tensors(definition.inputs),
            "outputs": _tensors(definition.outputs),
        }
        for name, definition in meta_graph.signature_def.items()
        if not name.startswith("__")
    }
    said = {
        name: {
            side: {
                tensor: {key: described.get(key) for key in ("dtype", "shape")}
                for tensor, described in signature[side].items()
            }
            for side in ("inputs", "outputs")
        }
        for name, signature in card["signatures"].items()
    }
    wrong = differences(served, said, "the graph's signatures.")
    functions = meta_graph.graph_def.library.function
    nodes = [*meta_graph.graph_def.node, *(node for each in functions for node in each.node_def)]
    joining = {
        (
            tuple(node.attr["allowed_batch_sizes"].list.i),
            node.attr["num_batch_threads"].i,
            node.attr["batch_timeout_micros"].i,
        )
        for node in nodes
        if node.op == "BatchFunction"
    }
    # The answer to a request above the limit need not show the limit, because most solves end
    # earlier.
    limit = card.get("max_steps_limit")
    limits = _graph_limits(functions)
    if limit is not None and limits != {limit}:
        wrong.append(f"max_steps_limit: the card says {limit}, the graph has {sorted(limits)}")
    joined = card.get("batching")
    expected = set()
    if joined is not None:
        sizes = tuple(sorted(set(joined["sizes"])))
        expected = {(sizes, joined["threads"], joined["timeout_micros"])}
    if joining != expected:
        wrong.append(f"batching: the card says {sorted(expected)}, the graph has {sorted(joining)}")
    if joined is not None and list(joined["sizes"]) != list(card.get("allowed_batch_sizes") or []):
        wrong.append("allowed_batch_sizes: not the sizes that batching names")
    return wrong


def _graph_limits(functions: Iterable[Any]) -> set[int]:
    """Returns the limits of max_steps in the graph; see `tfdeq.serving.signatures.signature.budget`."""
    found = set()
    for function in functions:
        constants = {node.name: node for node in function.node_def if node.op == "Const"}
        for node in function.node_def:
            if node.op == "Minimum" and node.input[0] == "max_steps":
                constant = constants.get(node.input[1].split(":")[0])
                if constant is not None:
                    found.add(int(tf.make_ndarray(constant.attr["value"].tensor)))
    return found


def _tensors(infos: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {
            "dtype": tf.as_dtype(info.dtype).name,
            "shape": tf.TensorShape(info.tensor_shape).as_list(),
        }
        for name, info in infos.items()
    }
