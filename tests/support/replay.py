"""Random valid and hostile requests to a version in TensorFlow's C++ runtime, from many clients.

    python -m tests.support.replay VERSION --requests=10000 --clients=32

Rows are first requested alone. Then requests are made from them, from rows that cannot be answered, and
from contents that the project's client would never send, and every answer is compared. The findings are
printed as JSON. TensorFlow's Python package is not used, and a crash only ends this process.
"""

import argparse
import itertools
import json
import pathlib
import threading
from typing import Any, NamedTuple

import numpy as np

from tfdeq.serving.server import runtime

INVALID, NON_FINITE = -1, 3
CONVERGENCE = ("residual", "steps", "status")
# Answers alone and in a batch differ by rounding, because products of other sizes are summed in
# another order.
LIMIT = 1e-4
POOL = 12  # rows of each signature
ONE_TOO_MANY = 2**30  # replaced by a length when the request's width is known
WIDEST = 7  # places of a size that a signature leaves open


class AnyDtype(runtime.Runtime):
    """Sends its inputs unchanged, as a server passes on what a client sent."""

    def _to_tensor(self, name, value, info):
        number = runtime._NUMBERS[np.asarray(value).dtype]
        return super()._to_tensor(name, value, info._replace(dtype=number))


class Row(NamedTuple):
    """One example, and its answer alone."""

    inputs: dict[str, np.ndarray]  # without the batch
    answer: dict[str, np.ndarray] | None  # None: a bad row
    status: int | None = None  # of a bad row


class Version:
    """A version with the contents of its card."""

    def __init__(self, path: pathlib.Path):
        self.runtime = AnyDtype(path)
        card = json.loads((path / "assets.extra" / "model_card.json").read_text())
        self.signatures = card["signatures"]
        self.length = card.get("sequence_length")
        self.vocabulary = (card.get("vocabulary") or {}).get("size")

    def specs(self, signature: str) -> dict[str, dict[str, Any]]:
        return self.signatures[signature]["inputs"]


def honest_row(version: Version, signature: str, random: np.random.Generator) -> dict:
    row, places = {}, int(random.integers(0, WIDEST))
    for name, spec in version.specs(signature).items():
        if name == "tokens":
            row[name] = random.integers(
                0, version.vocabulary, random.integers(1, version.length + 1)
            )
        elif name in _SETTINGS:
            row[name] = random.choice(_SETTINGS[name])
        elif not name.endswith("lengths"):
            shape = [places if size is None else size for size in spec["shape"][1:]]
            row[name] = random.normal(size=shape) if spec["dtype"] == "float32" else np.zeros(shape)
    if "tokens" in row:
        row["lengths"] = len(row["tokens"])
    if "equilibrium_lengths" in version.specs(signature):
        row["equilibrium_lengths"] = random.integers(-1, places + 3)
    if "memory_length" in row:
        row["memory_length"] = random.integers(0, 3)
    return {
        name: np.asarray(value, version.specs(signature)[name]["dtype"])
        for name, value in row.items()
    }


_SETTINGS = {
    "tolerance": [0.0, 1e-1, 1e-2, 1e-3, 1e-4, -1.0, np.nan, np.inf, 1e30],
    "max_steps": [0, 0, 0, 0, 3, 40, -7, 2**31 - 1, -(2**31)],
    "max_new_tokens": [1, 2, 3],
    "temperature": [0.0, 1.0, -1.0, np.nan],
    "top_k": [0, 3, -1, 2**31 - 1],
    "top_p": [0.0, 0.8, 5.0, np.nan],
    "seed": [0, 5, -5],
    "stop_token": [-1, 2],
}


def spoil(version: Version, signature: str, row: dict, random: np.random.Generator) -> Row:
    """Turns a valid row into one that cannot be answered."""
    row = {name: value.copy() for name, value in row.items()}
    if "tokens" in row:
        ways = [("lengths", value) for value in (0, -1, ONE_TOO_MANY, 2**31 - 1)]
        ways += [("tokens", value) for value in (-1, version.vocabulary, 2**31 - 1)]
        ways += [("memory_key", np.nan)] * ("memory_key" in row)
        ways += [("memory_length", value) for value in (-1, 99) if "memory_length" in row]
        name, value = ways[random.integers(len(ways))]
        status = INVALID
    else:
        name = random.choice([each for each in row if each not in (*_SETTINGS, "equilibrium")])
        value, status = random.choice([np.nan, np.inf, -np.inf]), NON_FINITE
        if not row[name].size:
            row[name] = row[name].copy()
            status = None
    row[name].reshape(-1)[-1:] = value
    return Row(row, None, status)


def request_of(version: Version, signature: str, rows: list[Row], random: np.random.Generator):
    """Returns the inputs of several rows; texts are padded randomly, to any width."""
    inputs = {}
    for name in version.specs(signature):
        values = [row.inputs[name] for row in rows]
        if name == "tokens":
            width = max(len(value) for value in values)
            if all(row.answer is not None for row in rows):
                width += random.integers(
                    0, 4
                )  # wider: a length that is one too many would have room
            behind = random.choice([-5, 0, 1, 2**31 - 1])
            values = [np.append(v, np.full(width - len(v), behind, v.dtype)) for v in values]
        inputs[name] = np.stack(values)
    if "lengths" in inputs:
        width = inputs["tokens"].shape[1]
        inputs["lengths"][inputs["lengths"] == ONE_TOO_MANY] = width + 1
    return inputs


def hostile(inputs: dict, random: np.random.Generator) -> dict:
    """Turns a valid request into one that must get an error."""
    inputs = dict(inputs)
    name = random.choice(list(inputs))
    value = inputs[name]
    way = random.integers(6)
    if way == 0:
        value = value[None] if random.random() < 0.5 else value[..., None]
    elif way == 1:
        value = value.reshape(-1) if value.ndim > 1 else value[:, None]
    elif way == 2:
        value = np.concatenate([value, value[:1]])
    elif way == 3:
        value = value.astype({"int32": "int64", "float32": "float64"}[value.dtype.name])
    elif way == 4:
        value = np.repeat(value, 3000, axis=0)  # alone: other rows than the rest
    else:
        return {each: np.repeat(part, 3000, axis=0) for each, part in inputs.items()}
    inputs[name] = value
    return inputs


class Findings:
    """The problems found, and the number of requests."""

    def __init__(self):
        self.lock = threading.Lock()
        self.counts = dict.fromkeys(("requests", "rows", "bad_rows", "refused", "empty", "near"), 0)
        self.wrong: list[str] = []
        self.resident: list[int] = []

    def add(self, **counts: int) -> None:
        with self.lock:
            for name, count in counts.items():
                self.counts[name] += count

    def fail(self, text: str) -> None:
        with self.lock:
            self.wrong.append(text)


def compare(findings: Findings, label: str, row: Row, answer: dict[str, np.ndarray]) -> None:
    for name, value in answer.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            findings.fail(f"{label}: {name} is not finite")
    if row.answer is None:
        if row.status is not None and answer["status"] != row.status:
            findings.fail(f"{label}: status {answer['status']} of a bad row, not {row.status}")
        return
    alone = row.answer
    if any(answer[name] != alone[name] for name in ("steps", "status")):
        # Rounding decides whether a residual meets the tolerance.
        if abs(int(answer["steps"]) - int(alone["steps"])) <= 1:
            findings.add(near=1)
            return
        findings.fail(f"{label}: {[(n, answer[n], alone[n]) for n in CONVERGENCE]}")
        return
    for name in answer.keys() - set(CONVERGENCE):
        one, other = answer[name], alone[name]
        if one.shape != other.shape:  # as wide as the request
            width = min(one.shape[0], other.shape[0])
            if one[width:].any() or other[width:].any():
                findings.fail(f"{label}: {name} is not 0 behind the text")
            one, other = one[:width], other[:width]
        if one.size and np.max(np.abs(one - other) / np.maximum(1, np.abs(other))) > LIMIT:
            findings.fail(f"{label}: {name} differs by {np.abs(one - other).max():.1e}")


def pools(version: Version, random: np.random.Generator) -> dict[str, list[Row]]:
    """Returns signature -> rows with their answers alone."""
    found = {}
    for signature in version.signatures:
        rows = []
        for _ in range(POOL):
            inputs = honest_row(version, signature, random)
            alone = version.runtime.run(signature, {n: v[None] for n, v in inputs.items()})
            rows.append(Row(inputs, {name: value[0] for name, value in alone.items()}))
        found[signature] = rows
    return found


def same_sizes(version: Version, signature: str, rows: list[Row]) -> list[Row]:
    """Returns rows that fit in one request: with equal sizes where the signature leaves sizes open."""
    open_inputs = [
        name
        for name, spec in version.specs(signature).items()
        if None in spec["shape"][1:] and name != "tokens"
    ]

    def sizes(row):
        return [row.inputs[name].shape for name in open_inputs]

    return [row for row in rows if sizes(row) == sizes(rows[0])]


def ask(version: Version, pool: dict[str, list[Row]], findings: Findings, seed: int) -> None:
    random = np.random.default_rng(seed)
    signature = random.choice(list(pool))
    rows = [
        pool[signature][i] for i in random.integers(POOL, size=random.choice([1, 1, 2, 3, 5, 40]))
    ]
    rows = same_sizes(version, signature, rows)
    kind = random.choice(["honest", "bad rows", "hostile", "empty"], p=[0.55, 0.25, 0.15, 0.05])
    if kind == "bad rows":
        rows = [
            spoil(version, signature, row.inputs, random) if random.random() < 0.5 else row
            for row in rows
        ]
    inputs = request_of(version, signature, rows, random)
    findings.add(requests=1)
    label = f"request {seed}, {signature}, {kind}"
    if kind == "hostile":
        inputs = hostile(inputs, random)
    elif kind == "empty":
        inputs = {name: value[:0] for name, value in inputs.items()}
    try:
        answer = version.runtime.run(signature, inputs)
    except RuntimeError as error:
        if kind == "hostile":
            findings.add(refused=1)
        else:
            findings.fail(f"{label}: {str(error)[:300]}")
        return
    if kind == "hostile":
        shapes = {name: value.shape for name, value in inputs.items()}
        findings.fail(f"{label}: answered, of {shapes}")
    elif kind == "empty":
        findings.add(empty=1)
        if any(len(value) for value in answer.values()):
            findings.fail(f"{label}: rows in the answer to none")
    else:
        findings.add(rows=len(rows), bad_rows=sum(row.answer is None for row in rows))
        for place, row in enumerate(rows):
            one = {name: value[place] for name, value in answer.items()}
            compare(findings, f"{label}, row {place}", row, one)


def resident_bytes() -> int:
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096


def replay(path: pathlib.Path, requests: int, clients: int, seed: int) -> dict[str, Any]:
    version, findings = Version(path), Findings()
    pool = pools(version, np.random.default_rng(seed))
    numbers = itertools.count()

    def client():
        while (number := next(numbers)) < requests:
            try:
                ask(version, pool, findings, seed + number)
            except Exception as error:
                findings.fail(f"request {number}: {error!r}")
            if number % max(1, requests // 20) == 0:
                findings.resident.append(resident_bytes())

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        **findings.counts,
        "wrong": len(findings.wrong),
        "first_wrong": findings.wrong[:5],
        "resident_mib": [round(size / 2**20) for size in findings.resident],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("version", type=pathlib.Path)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(json.dumps(replay(given.version, given.requests, given.clients, given.seed)))


if __name__ == "__main__":
    main()
