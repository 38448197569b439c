"""A solver of your own: Barzilai and Borwein's steps, on personalised PageRank.

A solver in tfdeq is a small dataclass that says how the next iterate follows from the last one. tfdeq
evaluates f, counts evaluations, stops each sample on its own, and differentiates the result. Here is one
that tfdeq does not have. With the residual g_k = f(z_k) - z_k, s = z_k - z_{k-1} and y = g_{k-1} - g_k,

    z_{k+1} = z_k + α_k g_k,    α_k = sᵀs / sᵀy,

which is Barzilai and Borwein's first step length (Two-Point Step Size Gradient Methods, IMA J. Numer.
Anal. 8(1), 1988, section 2). It keeps two vectors, where Anderson's method keeps two for each
iterate that it remembers.

The problem: a random walk on a graph that returns to its own start with probability 1 - d. Where it is in
the long run is an equilibrium, z = d z P + (1 - d) x (personalised PageRank: Page, Brin, Motwani and
Winograd, 1999, section 6). The classical method is to apply f again and again; it gains a factor d per
application, so it is slow for d = 0.99. We compare evaluations at equal accuracy, then use the solver for
a gradient: how the rank of one page depends on d.

Run: python examples/custom_solver.py [folder for the picture]
"""

import dataclasses
import pathlib
import sys

import keras
import matplotlib.figure
import numpy as np
import tensorflow as tf

import tfdeq


@keras.saving.register_keras_serializable(package="examples")
@dataclasses.dataclass(frozen=True)
class BarzilaiBorwein(tfdeq.solvers.Solver):
    """z_{k+1} = z_k + α g_k with α = sᵀs / sᵀy, kept between `lowest` and `highest`.

    It is made for maps with symmetric Jacobians. Residuals rise now and then on the way down.
    """

    lowest: float = 0.1
    highest: float = 1e3

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.lowest <= self.highest:
            raise ValueError(f"0 < lowest <= highest; received {self.lowest}, {self.highest}.")

    def initial_state(self, z, max_steps=None):
        return tf.zeros_like(z), tf.zeros_like(z)  # the last z and g, [B, D]

    def step(self, state, k, z, f_z):
        g = f_z - z
        s, y = z - state[0], state[1] - g
        length = tf.reduce_sum(s * s, axis=1)
        alpha = tf.math.divide_no_nan(length, tf.reduce_sum(s * y, axis=1))
        # In the first step there is nothing to compare with, and α = 1 is plain iteration.
        usable = (k > 0) & (length > 0) & (alpha > 0)
        alpha = tf.where(usable, tf.clip_by_value(alpha, self.lowest, self.highest), 1.0)
        return (z, g), z + alpha[:, None] * g

    def restart(self, state, mask):
        return tf.nest.map_structure(lambda leaf: tf.where(mask[:, None], 0.0, leaf), state)


SOLVERS = {
    "plain iteration": tfdeq.FixedPointIteration(max_steps=2000, tolerance=1e-5),
    "Barzilai-Borwein": BarzilaiBorwein(max_steps=2000, tolerance=1e-5),
    "Anderson, 5 past": tfdeq.Anderson(max_steps=2000, tolerance=1e-5, memory=5),
    "Anderson, 20 past": tfdeq.Anderson(max_steps=2000, tolerance=1e-5, memory=20),
}


def random_graph(nodes=400, radius=0.09, seed=0):
    """Links between points of the unit square that are near to each other.

    Returns P [nodes, nodes] and the square roots of the numbers of links. P is D^(-1/2) A D^(-1/2), which
    has the eigenvalues of the walk D^(-1) A and is symmetric.
    """
    points = np.random.default_rng(seed).random((nodes, 2))
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    linked = (distances < radius).astype("float32")  # a point links to itself too
    root = np.sqrt(linked.sum(axis=1))
    return tf.constant(linked / root / root[:, None]), root


def walk(z, d, x, p):
    """One step of the walk: z [B, nodes], d [], x [B, nodes], P [nodes, nodes] -> [B, nodes]."""
    return d * (z @ p) + (1 - d) * x


def solve(solver, d, x, p, **settings):
    return tfdeq.fixed_point(walk, tf.zeros_like(x), (d, x, p), solver, **settings)


def evaluations(solver, d, x, p):
    """Returns the mean evaluations to a residual of 1e-5, and the residuals of all iterates."""
    solution = solve(solver, d, x, p, trace=True)
    assert bool(tf.reduce_all(solution.converged)), tfdeq.describe(max(solution.status.numpy()))
    exact = np.linalg.solve(np.eye(len(p)) - float(d) * p.numpy().T, (1 - float(d)) * x.numpy().T)
    error = np.abs(solution.z - exact.T).max() / np.abs(exact).max()
    assert error < 1e-2, error  # (1 + d) / (1 - d) = 199 times the residual at most
    return float(np.mean(solution.steps)), solution.trace.numpy()


def check_gradient(d, x, p):
    """Returns the derivative of the largest rank by d, from the equilibrium and from a difference."""
    d, x, p = (tf.cast(tensor, "float64") for tensor in (d, x, p))
    solver = BarzilaiBorwein(max_steps=5000, tolerance=1e-11)
    with tf.GradientTape() as tape:
        tape.watch(d)
        rank = tf.reduce_max(solve(solver, d, x, p).z[0])
    above, below = (tf.reduce_max(solve(solver, d + h, x, p).z[0]) for h in (1e-6, -1e-6))
    return float(tape.gradient(rank, d)), float(above - below) / 2e-6


def main(folder="."):
    p, root = random_graph()
    starts = np.random.default_rng(1).choice(len(root), 16, replace=False)
    x = tf.constant(np.eye(len(root), dtype="float32")[starts])
    d = tf.constant(0.99)
    figure = matplotlib.figure.Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    counts = {}
    for name, solver in SOLVERS.items():
        counts[name], trace = evaluations(solver, d, x, p)
        print(f"{name:>17}: {counts[name]:6.1f} evaluations of f to a residual of 1e-5")
        axes.semilogy(np.nanmean(np.where(np.isfinite(trace), trace, np.nan), axis=0), label=name)
    axes.set(xlabel="evaluations of f", ylabel="mean relative residual", xlim=(0, 400))
    axes.legend()
    figure.savefig(pathlib.Path(folder, "custom_solver.png"), dpi=100)
    implicit, difference = check_gradient(d, x, p)
    print(f"derivative of the largest rank by d: {implicit:.8f}; by differences: {difference:.8f}")
    layer = tfdeq.DEQLayer(tfdeq.cells.DenseCell(16), BarzilaiBorwein(max_steps=50))
    restored = tfdeq.DEQLayer.from_config(layer.get_config())
    assert restored.solver == layer.solver  # so models with this solver can be saved
    print(f"Plain iteration, the classical method, takes {counts['plain iteration']:.0f} evaluations; "
          f"Barzilai and Borwein's steps take {counts['Barzilai-Borwein']:.0f}.")  # fmt: skip
    return {**counts, "derivative": implicit, "difference": difference}


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".")
