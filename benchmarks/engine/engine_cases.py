"""The benchmark's cells and cases: weights and inputs that every framework reads from one npz file.

A cell is a pair of functions, with the same mathematics in every worker, of the state z and the input
x:

    transformer  inject: x U;   f = a + gelu(norm(a) E) C,  a = x + attention(norm(z) W + x U) O
    dense        inject: x U;   f = tanh(z W + x U + b)
    convolution  inject: U * x; f = tanh(C * relu(W * z + U * x) + x)

All workers compute `inject` once per solve. Attention is full softmax attention over heads, norm is the
root-mean-square norm without gain, gelu is its tanh form, and convolutions are 3 x 3 with zero padding,
on [B, height, width, channels]. The loss is ½ ‖z* − target‖². Its gradient is of order one, so that
solvers with an absolute ridge have no disadvantage in the backward solve.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

NORM_EPSILON = 1e-5
# These weights only act on x, once per solve; all others act in every evaluation.
INJECTION_WEIGHTS = ("U",)

CASES: dict[str, dict[str, Any]] = {
    "transformer": {
        "kind": "transformer",
        "shape": [8, 64, 256],
        "heads": 8,
        "hidden": 1024,
        "gain": 0.9,
    },
    "long_sequence": {
        "kind": "transformer",
        "shape": [1, 512, 256],
        "heads": 8,
        "hidden": 1024,
        "gain": 0.9,
    },
    "dense": {"kind": "dense", "shape": [256, 64], "gain": 0.93},
    "convolution": {"kind": "convolution", "shape": [16, 32, 32, 48], "gain": 1.9},
}
# The same cells with small sizes, only to test that everything works.
QUICK_CASES: dict[str, dict[str, Any]] = {
    "transformer": {
        **CASES["transformer"],
        "shape": [2, 8, 32],
        "heads": 4,
        "hidden": 64,
        "gain": 0.6,
    },
    "long_sequence": {
        **CASES["long_sequence"],
        "shape": [1, 16, 32],
        "heads": 4,
        "hidden": 64,
        "gain": 0.7,
    },
    "dense": {**CASES["dense"], "shape": [8, 16]},
    "convolution": {**CASES["convolution"], "shape": [2, 8, 8, 8], "gain": 1.4},
}


def describe(case: Mapping[str, Any]) -> str:
    """Returns the sizes of a case as text for readers."""
    shape = case["shape"]
    if case["kind"] == "transformer":
        return (
            f"Transformer cell, B {shape[0]}, T {shape[1]}, d {shape[2]}, {case['heads']} heads, "
            f"feed-forward {case['hidden']}"
        )
    if case["kind"] == "dense":
        return f"dense cell, B {shape[0]}, D {shape[1]}"
    return f"convolutional cell, B {shape[0]}, {shape[1]} x {shape[2]} x {shape[3]}"


def make_arrays(case: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns "x", "target" and all weights "w/NAME" of a case, float32.

    The recurrent weights W are scaled by the case's gain, so that plain iteration converges, but slowly
    enough that 20 steps do not suffice.
    """
    generator = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * generator.normal(size=shape)).astype(np.float32)

    def linear(*shape: int, gain: float = 1.0) -> np.ndarray:
        return normal(*shape, scale=gain / np.sqrt(np.prod(shape[:-1])))

    shape, gain = case["shape"], case["gain"]
    width = shape[-1]
    arrays = {"x": normal(*shape), "target": normal(*shape)}
    if case["kind"] == "transformer":
        hidden = case["hidden"]
        weights = {
            "W": linear(width, 3 * width, gain=gain),
            "U": linear(width, 3 * width),
            "O": linear(width, width),
            "E": linear(width, hidden),
            "C": linear(hidden, width),
        }
    elif case["kind"] == "dense":
        weights = {
            "W": linear(width, width, gain=gain),
            "U": linear(width, width),
            "b": normal(width, scale=0.1),
        }
    else:
        weights = {
            "W": linear(3, 3, width, width, gain=gain),
            "U": linear(3, 3, width, width),
            "C": linear(3, 3, width, width),
        }
    return {**arrays, **{f"w/{name}": value for name, value in weights.items()}}
