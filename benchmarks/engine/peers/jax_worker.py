"""JAXopt and Optimistix on CPU JAX, compiled by jax.jit.

Their stopping tests differ from those of the other libraries: JAXopt compares an absolute norm over the
whole batch, and Optimistix and the GMRES solvers have their own tests. So that none of them does more
work than necessary, each gets the loosest setting with which every sample's residual is at most the
tolerance, found by trial before the timing: a tolerance if the test is a norm, else the smallest
budget.
"""

import bisect
import importlib.metadata
import json
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import jaxopt
import lineax
import numpy as np
import optimistix
from jax.custom_derivatives import linear_call

from benchmarks.engine.engine_cases import NORM_EPSILON
from benchmarks.engine.peers import protocol

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# Broyden's solver evaluates f once before its first step, so one step less makes the same number of
# evaluations.
_EVALUATIONS_BEFORE = {"broyden": 1}
# The settings that calibration tries, loosest first.
_SHARES = tuple(4.0 * 0.85**k for k in range(60))
_JAXOPT = {
    "fixed_point_iteration": lambda f, **settings: jaxopt.FixedPointIteration(f, **settings),
    "anderson": lambda f, **settings: jaxopt.AndersonAcceleration(f, history_size=6, **settings),
    # Without a line search, like the others; the default one costs an evaluation and a gradient per
    # trial.
    "broyden": lambda f, **settings: jaxopt.Broyden(
        lambda z, *args: f(z, *args) - z, stepsize=1.0, gamma=-1.0, **settings
    ),
}


def inject(kind: str, weights: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Returns the terms of the input that are the same in every evaluation."""
    return _convolve(x, weights["U"]) if kind == "convolution" else x @ weights["U"]


def apply_cell(case: dict[str, Any], z, injected, x, weights: dict[str, jax.Array]) -> jax.Array:
    """Returns f(z) for the kind of the case; see `benchmarks.engine.engine_cases`."""
    if case["kind"] == "dense":
        return jnp.tanh(z @ weights["W"] + injected + weights["b"])
    if case["kind"] == "convolution":
        hidden = jax.nn.relu(_convolve(z, weights["W"]) + injected)
        return jnp.tanh(_convolve(hidden, weights["C"]) + x)
    attended = _attention(_norm(z) @ weights["W"] + injected, case["heads"])
    a = x + attended @ weights["O"]
    return a + jax.nn.gelu(_norm(a) @ weights["E"], approximate=True) @ weights["C"]


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT)


def _norm(z: jax.Array) -> jax.Array:
    return z * jax.lax.rsqrt(jnp.mean(z * z, axis=-1, keepdims=True) + NORM_EPSILON)


def _attention(projected: jax.Array, heads: int) -> jax.Array:
    batch, length, width = projected.shape
    width //= 3
    split = projected.reshape(batch, length, 3, heads, width // heads)
    query, key, value = split.transpose(2, 0, 3, 1, 4)
    logits = query @ key.swapaxes(-1, -2) * (width // heads) ** -0.5
    attended = jax.nn.softmax(logits) @ value
    return attended.swapaxes(1, 2).reshape(batch, length, width)


class JaxWorker(protocol.Worker):
    name = "JAX"
    solvers: ClassVar = {
        "JAXopt fixed_point_iteration": ("fixed", "tolerance"),
        "JAXopt anderson": ("fixed", "tolerance"),
        "JAXopt broyden": ("fixed", "tolerance"),
        "JAXopt anderson, gmres": ("fixed", "tolerance"),
        "Optimistix fixed_point_iteration, gmres": ("fixed", "tolerance"),
        "Optimistix newton, gmres": ("tolerance",),
    }

    def __init__(self):
        super().__init__()
        protocol.threads()

    def versions(self):
        return {
            name: importlib.metadata.version(name)
            for name in ("jax", "jaxopt", "optimistix", "lineax")
        }

    def load(self):
        self._x = jnp.asarray(self.arrays["x"])
        self._target = jnp.asarray(self.arrays["target"])
        self._weights = {
            name[2:]: jnp.asarray(value)
            for name, value in self.arrays.items()
            if name.startswith("w/")
        }
        self._settings: dict[str, dict[str, Any]] = {}
        self._compilations: dict[str, Callable[..., Any]] = {}

    def build(self, variant):
        step, tolerances = self._compiled(variant, self._calibrated(variant))
        return lambda: jax.block_until_ready(step(self._x, self._weights, None, tolerances))

    def probe(self, variant):
        return self._probe(variant, self._calibrated(variant))

    def count(self, variant):
        counts = [0, 0]
        settings = self._calibrated(variant)
        tolerances = settings["forward"], settings["backward"]
        step = jax.jit(self._training_step(variant, settings["restart"], _counted(counts)))
        jax.block_until_ready(step(self._x, self._weights, None, tolerances))
        jax.effects_barrier()
        return counts[0], counts[1]

    def image_and_product(self, z, u):
        injected = inject(self.case["kind"], self._weights, self._x)
        image, pull = jax.vjp(
            lambda z: apply_cell(self.case, z, injected, self._x, self._weights), jnp.asarray(z)
        )
        return np.asarray(image), np.asarray(pull(jnp.asarray(u))[0])

    def _probe(self, variant, settings):
        step, tolerances = self._compiled(variant, settings)
        results = step(self._x, self._weights, jnp.zeros_like(self._x), tolerances)
        return {name: np.asarray(value) for name, value in results.items()}

    def _compiled(self, variant, settings):
        """Returns a step for these settings, compiled once for all tolerances, and its tolerances."""
        key = json.dumps([variant, settings["restart"]], sort_keys=True)
        if key not in self._compilations:
            step = self._training_step(variant, settings["restart"])
            self._compilations[key] = jax.jit(step)
        return self._compilations[key], (settings["forward"], settings["backward"])

    def _training_step(self, variant, restart, enter: Callable[[Any], Any] = lambda z: z):
        """Returns step(x, weights, e, tolerances); enter is called with all states that f evaluates."""

        def cell(z, args):
            injected, x, weights, e = args
            image = apply_cell(self.case, enter(z), injected, x, weights)
            return image if e is None else image + e

        solve = _optimistix if variant["solver"].startswith("Optimistix") else _jaxopt

        def loss_of(sources, tolerances):
            x, weights, e = sources
            settings = {"tolerances": tolerances, "restart": restart}
            injected = inject(self.case["kind"], weights, x)
            z = solve(cell, jnp.zeros_like(x), (injected, x, weights, e), variant, settings)
            return 0.5 * jnp.sum((z - self._target) ** 2), z

        def step(x, weights, e, tolerances):
            (loss, z), (d_x, d_weights, d_e) = jax.value_and_grad(loss_of, has_aux=True)(
                (x, weights, e), tolerances
            )
            results = {"loss": loss, "z": z, "d/x": d_x}
            results.update({f"d/{name}": value for name, value in d_weights.items()})
            return results if e is None else {**results, "u": d_e}

        return step

    def _calibrated(self, variant) -> dict[str, Any]:
        """Returns the loosest settings that reach the tolerance, first forward, then backward."""
        key = json.dumps(variant, sort_keys=True)
        if key not in self._settings:
            settings = {"forward": 0.0, "backward": 0.0, "restart": variant["backward_steps"]}
            if variant["tolerance"] is not None:
                self._calibrate(variant, settings)
            self._settings[key] = settings
        return self._settings[key]

    def _calibrate(self, variant, settings) -> None:
        size = float(np.linalg.norm(self.arrays["x"])) * variant["tolerance"]

        def reaches(index: int, name: str, value: Any) -> bool:
            settings[name] = value
            outputs = self._probe(variant, settings)
            return self.residuals(outputs["z"], outputs["u"])[index] <= variant["tolerance"]

        tolerances = [share * size for share in _SHARES]
        settings["forward"] = _first(tolerances, lambda value: reaches(0, "forward", value))
        if variant["solver"].endswith("gmres"):
            steps = list(range(1, variant["backward_steps"] + 1))
            settings["restart"] = _first(steps, lambda value: reaches(1, "restart", value))
        else:
            settings["backward"] = _first(tolerances, lambda value: reaches(1, "backward", value))


def _first(values: list[Any], holds: Callable[[Any], bool]) -> Any:
    """Returns the first of values for which holds(value) is true, by bisection; the last if there is none."""
    return values[bisect.bisect_left(values, True, 0, len(values) - 1, key=holds)]


def _jaxopt(cell, z0, args, variant, settings):
    name, _, backward = variant["solver"].removeprefix("JAXopt ").partition(", ")
    before = _EVALUATIONS_BEFORE.get(name, 0)

    def solve_adjoint(matvec, b):
        """Returns u with (J − I)ᵀ u = b, by the same kind of solver or by GMRES."""
        if backward == "gmres":
            return jaxopt.linear_solve.solve_gmres(
                matvec, b, tol=0.0, restart=settings["restart"], maxiter=1
            )
        solver = _JAXOPT[name](
            lambda u: matvec(u) + u - b,
            maxiter=variant["backward_steps"] - before,
            tol=settings["tolerances"][1],
        )
        return solver.run(-b).params

    solver = _JAXOPT[name](
        cell,
        maxiter=variant["forward_steps"] - before,
        tol=settings["tolerances"][0],
        implicit_diff_solve=solve_adjoint,
    )
    return solver.run(z0, args).params


def _optimistix(cell, z0, args, variant, settings):
    # Without tolerances GMRES makes its first pass, which only computes a residual, and one of
    # `restart` steps.
    adjoint = optimistix.ImplicitAdjoint(
        lineax.GMRES(rtol=0.0, atol=0.0, restart=settings["restart"], max_steps=2)
    )
    # The absolute norm is used, because the norm relative to rtol · |z| + atol would divide by
    # small entries.
    tests = {"rtol": 0.0, "atol": settings["tolerances"][0], "norm": optimistix.two_norm}
    if "newton" in variant["solver"]:
        inner = lineax.GMRES(rtol=0.0, atol=0.0, restart=5, max_steps=2)
        solver = optimistix.Newton(**tests, linear_solver=inner)
    else:
        solver = optimistix.FixedPointIteration(**tests)
    return optimistix.fixed_point(
        cell,
        solver,
        z0,
        args,
        max_steps=variant["forward_steps"],
        adjoint=adjoint,
        throw=False,
    ).value


def _counted(counts: list[int]) -> Callable[[Any], Any]:
    """Returns an identity function that counts its calls, its tangents and its cotangents."""

    def note(index: int, array: Any) -> None:
        def add(_):
            counts[index] += 1

        jax.debug.callback(add, array.reshape(-1)[0])

    @jax.custom_jvp
    def counted(z):
        note(0, z)
        return z

    def passing(_, tangent):
        note(1, tangent)
        return tangent

    @counted.defjvp
    def _(primals, tangents):
        return counted(*primals), linear_call(passing, passing, (), *tangents)

    return counted


if __name__ == "__main__":
    protocol.serve(JaxWorker)
