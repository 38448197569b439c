"""How many evaluations Optimistix's root finders need; `benchmarks.engine.robustness` runs it.

python -m benchmarks.engine.peers.optimistix_roots TOLERANCE EVALUATIONS

Prints one JSON object, problem -> method -> evaluations, null if the tolerance was not met. The methods
build the whole Jacobian: a step counts as one evaluation and, if it starts from a new point, as many
products with the Jacobian as there are unknowns (Chord uses one Jacobian for all steps).
"""

import json
import sys

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optimistix

from benchmarks.engine.problems import PROBLEMS, Problem

_NEVER = {"rtol": 1e-300, "atol": 1e-300}  # the caller stops the methods
METHODS = {
    "newton": optimistix.Newton,
    "chord": optimistix.Chord,
    "dogleg": optimistix.Dogleg,
    "levenberg-marquardt": optimistix.LevenbergMarquardt,
}


def count(problem: Problem, method: str, evaluations: int, tolerance: float) -> int | None:
    """Returns the evaluations and products until the tolerance is met, or None."""

    def g(z, args):
        del args
        return problem.f(jnp, z[None])[0] - z, None

    image = jax.jit(lambda z: problem.f(jnp, z[None])[0])
    solver, z = METHODS[method](**_NEVER), jnp.asarray(problem.start)
    structure = jax.ShapeDtypeStruct(z.shape, z.dtype)
    state = solver.init(g, z, None, {}, structure, None, frozenset())
    step = equinox.filter_jit(lambda z, state: solver.step(g, z, None, {}, state, frozenset())[:2])
    spent, previous, jacobians = 0, None, 0
    while True:
        f_z = np.asarray(image(z))
        spent += 1
        if np.linalg.norm(f_z - np.asarray(z)) <= tolerance * np.linalg.norm(f_z):
            return spent
        # A rejected step does not change the iterate and its Jacobian.
        moved = previous is None or bool(np.any(np.asarray(z) != previous))
        if moved and not (method == "chord" and jacobians):
            spent, jacobians = spent + z.size, jacobians + 1
        if spent >= evaluations:
            return None
        previous = np.asarray(z)
        z, state = step(z, state)


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    tolerance, evaluations = float(sys.argv[1]), int(sys.argv[2])
    results: dict[str, dict[str, int | None]] = {}
    for name, make in PROBLEMS.items():
        problem = make()
        results[name] = {m: count(problem, m, evaluations, tolerance) for m in METHODS}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
