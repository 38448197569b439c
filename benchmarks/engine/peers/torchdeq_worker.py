"""TorchDEQ on CPU PyTorch, run eagerly, as in its documentation."""

import importlib.metadata
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torchdeq import get_deq

from benchmarks.engine.engine_cases import INJECTION_WEIGHTS, NORM_EPSILON
from benchmarks.engine.peers import protocol

# Broyden's solver evaluates f once before its first step, so one step less makes the same number of
# evaluations.
_EVALUATIONS_BEFORE = {"broyden": 1}
# This solver computes no residuals, so it cannot stop early, and it needs another form of f in the
# backward solve.
_BACKWARD = {"simple_fixed_point_iter": "fixed_point_iter"}
_UNREACHABLE = 1e-30


def inject(kind: str, weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Returns the terms of the input that are the same in every evaluation."""
    return F.conv2d(x, weights["U"], padding=1) if kind == "convolution" else x @ weights["U"]


def apply_cell(case: dict[str, Any], z, injected, x, weights: dict[str, torch.Tensor]):
    """Returns f(z) for the kind of the case; see `benchmarks.engine.engine_cases`."""
    if case["kind"] == "dense":
        return torch.tanh(z @ weights["W"] + injected + weights["b"])
    if case["kind"] == "convolution":
        hidden = F.relu(F.conv2d(z, weights["W"], padding=1) + injected)
        return torch.tanh(F.conv2d(hidden, weights["C"], padding=1) + x)
    attended = _attention(_norm(z) @ weights["W"] + injected, case["heads"])
    a = x + attended @ weights["O"]
    return a + F.gelu(_norm(a) @ weights["E"], approximate="tanh") @ weights["C"]


def _norm(z: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(z, z.shape[-1:], eps=NORM_EPSILON)


def _attention(projected: torch.Tensor, heads: int) -> torch.Tensor:
    batch, length, width = projected.shape
    width //= 3
    split = projected.view(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(*split.unbind())
    return attended.transpose(1, 2).reshape(batch, length, width)


class _Counted(torch.autograd.Function):
    """An identity function that counts its calls and its gradients."""

    @staticmethod
    def forward(ctx, z, counts):
        ctx.counts = counts
        counts[0] += 1
        return z.view_as(z)

    @staticmethod
    def backward(ctx, d_z):
        ctx.counts[1] += 1
        return d_z, None


class TorchdeqWorker(protocol.Worker):
    name = "TorchDEQ"
    solvers: ClassVar = {
        "fixed_point_iter": ("fixed", "tolerance"),
        "simple_fixed_point_iter": ("fixed",),
        "anderson": ("fixed", "tolerance"),
        "broyden": ("fixed", "tolerance"),
    }

    def __init__(self):
        super().__init__()
        torch.set_num_threads(protocol.threads())

    def versions(self):
        return {
            "torchdeq": importlib.metadata.version("torchdeq"),
            "torch": torch.__version__,
        }

    def load(self):
        def tensor(name):
            return torch.from_numpy(self._inward(name, self.arrays[name])).requires_grad_()

        self._x = tensor("x")
        self._target = tensor("target").detach()
        self._weights = {name[2:]: tensor(name) for name in self.arrays if name.startswith("w/")}

    def build(self, variant):
        step = self._training_step(variant)
        return lambda: step(None)

    def probe(self, variant):
        e = torch.zeros_like(self._x, requires_grad=True)
        results = self._training_step(variant)(e)
        return {
            name: self._outward(name, value.detach().numpy()) for name, value in results.items()
        }

    def count(self, variant):
        counts = [0, 0]
        self._training_step(variant, lambda z: _Counted.apply(z, counts))(None)
        return counts[0], counts[1]

    def image_and_product(self, z, u):
        z, u = (torch.from_numpy(self._inward("z", array)) for array in (z, u))
        z.requires_grad_()
        injected = inject(self.case["kind"], self._weights, self._x)
        image = apply_cell(self.case, z, injected, self._x, self._weights)
        (product,) = torch.autograd.grad(image, z, u)
        return tuple(self._outward("z", array.detach().numpy()) for array in (image, product))

    def _training_step(self, variant, enter=lambda z: z):
        """Returns step(e) -> results; enter is called with every state that f is evaluated at."""
        equilibrium = _explicit(variant) if variant["solver"] == "explicit" else _solve(variant)

        def step(e):
            injected = inject(self.case["kind"], self._weights, self._x)

            def cell(z):
                image = apply_cell(self.case, enter(z), injected, self._x, self._weights)
                return image if e is None else image + e

            def damped(z, tau=1.0):  # simple_fixed_point_iter passes tau
                return cell(z)

            z = equilibrium(damped, torch.zeros_like(self._x))
            loss = 0.5 * torch.sum((z - self._target) ** 2)
            sources = {"d/x": self._x, **{f"d/{k}": v for k, v in self._weights.items()}}
            if e is not None:
                sources["u"] = e
            gradients = torch.autograd.grad(loss, list(sources.values()))
            return {"loss": loss, "z": z, **dict(zip(sources, gradients, strict=True))}

        return step

    def _inward(self, name: str, array: np.ndarray) -> np.ndarray:
        """Converts images and kernels from the files' layout to PyTorch's."""
        if self.case["kind"] != "convolution":
            return array
        kernel = name.split("/")[-1] in ("W", "C", *INJECTION_WEIGHTS)
        return np.ascontiguousarray(array.transpose((3, 2, 0, 1) if kernel else (0, 3, 1, 2)))

    def _outward(self, name: str, array: np.ndarray) -> np.ndarray:
        if self.case["kind"] != "convolution" or array.ndim != 4:
            return array
        kernel = name.split("/")[-1] in ("W", "C", *INJECTION_WEIGHTS)
        return array.transpose((2, 3, 1, 0) if kernel else (0, 2, 3, 1))


def _solve(variant):
    """Returns z* from TorchDEQ, with the variant's solver forward and backward."""
    forward = variant["solver"]
    backward = _BACKWARD.get(forward, forward)
    tolerance = variant["tolerance"] or _UNREACHABLE
    deq = get_deq(
        f_solver=forward,
        b_solver=backward,
        ift=True,
        f_max_iter=variant["forward_steps"] - _EVALUATIONS_BEFORE.get(forward, 0),
        b_max_iter=variant["backward_steps"] - _EVALUATIONS_BEFORE.get(backward, 0),
        f_tol=tolerance,
        b_tol=tolerance,
        f_stop_mode="rel",
        b_stop_mode="rel",
    )
    deq.train()
    return lambda cell, z0: deq(cell, z0)[0][-1]


def _explicit(variant):
    """Returns the output of forward_steps layers, differentiated by backpropagation."""

    def equilibrium(cell, z):
        for _ in range(variant["forward_steps"]):
            z = cell(z)
        return z

    return equilibrium


if __name__ == "__main__":
    protocol.serve(TorchdeqWorker)
