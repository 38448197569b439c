"""Optimal transport as a layer: learn which features of two point clouds belong together.

Entropic optimal transport between two clouds of n points with costs C is the matrix

    P_ij = exp((f_i + g_j - C_ij) / ε) whose rows and columns sum to 1.

Sinkhorn's algorithm (Cuturi, arXiv:1306.0895) alternates f = -ε logsumexp_j((g_j - C_ij) / ε), which sets
the sums of rows right, and g = -ε logsumexp_i((f_i - C_ij) / ε), which sets those of columns right. Both
together are a map T with g = T(g, C) at the solution: an equilibrium without a network. Its
gradient follows from the implicit function theorem (Eisenberger et al., arXiv:2205.06688), so no iteration
is kept in memory. (g plus a constant is a solution too; T subtracts the mean, so that there is just one.)

Here each point of one cloud has a partner in the other: two of its eight features agree, up to noise. The
rest are noise. We learn a weight for each feature in the cost, C_ij = Σ_d w_d (x_id - y_jd)², so that the
transport finds the partners. At the end, unrolling learns for the same time.

Run: python examples/sinkhorn.py [folder for the picture]
"""

import pathlib
import resource
import sys
import time

import matplotlib.figure
import numpy as np
import tensorflow as tf

import tfdeq

EPSILON, DIMENSIONS = 0.05, 8
SOLVER = tfdeq.Anderson(max_steps=200, tolerance=1e-5, memory=8)
PLAIN, UNROLLED = tfdeq.FixedPointIteration(100), tfdeq.Unrolled(100, checkpointed=False)


def half_step(g, cost, axis):
    """Returns the f that sets the sums of rows right; with axis=1, the g for the sums of columns."""
    g = tf.expand_dims(g, 3 - axis)
    return -EPSILON * tf.reduce_logsumexp((g - cost) / EPSILON, axis)


def sinkhorn(g, cost):
    """T(g, C): g [B, n], C [B, n, n] -> [B, n]."""
    g = half_step(half_step(g, cost, 2), cost, 1)
    return g - tf.reduce_mean(g, axis=1, keepdims=True)


def log_transport(cost, adjoint="implicit", solver=SOLVER):
    """Returns log P [B, n, n] and the solution."""
    start = tf.zeros_like(cost[:, 0])
    solution = tfdeq.fixed_point(sinkhorn, start, (cost,), solver, adjoint)
    f = half_step(solution.z, cost, 2)
    return (f[:, :, None] + solution.z[:, None, :] - cost) / EPSILON, solution


def clouds(count, points, seed, dtype="float32"):
    """Two clouds [count, points, 8]: point i of one belongs to point i of the other."""
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(2, count, points, DIMENSIONS)).astype(dtype)
    y[..., :2] = x[..., :2] + 0.02 * y[..., :2]
    return tf.constant(x), tf.constant(y)


def costs(logits, x, y):
    """C_ij = Σ_d w_d (x_id - y_jd)² with w = softmax(logits)."""
    return tf.einsum("d,bijd->bij", tf.nn.softmax(logits), (x[:, :, None] - y[:, None]) ** 2)


def loss_and_gradient(logits, x, y, adjoint="implicit", solver=SOLVER):
    """Returns -log P of the true partners, and its gradient with respect to the logits."""
    with tf.GradientTape() as tape:
        tape.watch(logits)
        log_p, _ = log_transport(costs(logits, x, y), adjoint, solver)
        loss = -tf.reduce_mean(tf.linalg.diag_part(log_p))
    return loss, tape.gradient(loss, logits)


def right(logits, points=64):
    """Returns the share of points, in new clouds, whose largest transport is to their partner."""
    log_p, solution = log_transport(costs(logits, *clouds(16, points, seed=1_000_000)))
    found = tf.argmax(log_p, axis=2) == tf.range(points, dtype=tf.int64)
    return float(tf.reduce_mean(tf.cast(found, tf.float32))), solution


def check_gradient():
    """Returns the largest differences of the implicit gradient from finite differences and unrolling."""
    exact = tfdeq.Anderson(max_steps=500, tolerance=1e-12, memory=8)
    plain = tfdeq.FixedPointIteration(max_steps=500, tolerance=1e-12)
    x, y = clouds(2, 16, seed=0, dtype="float64")
    logits = tf.constant(np.random.default_rng(1).normal(size=DIMENSIONS))
    solved = tf.function(lambda logits: loss_and_gradient(logits, x, y, solver=exact))
    unrolled = loss_and_gradient(logits, x, y, tfdeq.Unrolled(500), plain)[1]
    differences = []
    for h in 5e-6 * tf.eye(DIMENSIONS, dtype="float64"):
        differences.append((solved(logits + h)[0] - solved(logits - h)[0]) / 1e-5)
    implicit = solved(logits)[1]
    return [float(tf.reduce_max(abs(implicit - other))) for other in (differences, unrolled)]


def cost_of_gradient(adjoint, solver):
    """Returns the seconds of one gradient with clouds of 256 points, and the MiB by which memory grew."""
    compiled = tf.function(lambda logits, x, y: loss_and_gradient(logits, x, y, adjoint, solver))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):  # the first traces the graph
        start = time.perf_counter()
        compiled(tf.zeros([DIMENSIONS]), *clouds(4, 256, seed=0))[0].numpy()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return time.perf_counter() - start, (peak - before) / 1024


def learn(adjoint, solver, steps=None, seconds=None):
    """Learns the logits in a number of steps, or in a time; returns them and the seconds."""
    compiled = tf.function(lambda logits, x, y: loss_and_gradient(logits, x, y, adjoint, solver)[1])
    logits, step, start = tf.zeros([DIMENSIONS]), 0, 0.0
    while step <= 1 or (step < steps if steps else time.perf_counter() - start < seconds):
        logits = logits - 0.5 * tf.math.l2_normalize(compiled(logits, *clouds(4, 64, seed=step)))
        step += 1
        if step == 1:
            start = time.perf_counter()
    return logits, time.perf_counter() - start


def main(folder="."):
    finite, unrolled = check_gradient()
    print(f"implicit gradient: {finite:.0e} from differences, {unrolled:.0e} from 500 iterations")
    seconds, mib = cost_of_gradient("implicit", SOLVER)
    slow, large = cost_of_gradient(UNROLLED, PLAIN)
    print(f"256 points: an implicit gradient takes {seconds:.2f} s and {mib:.0f} MiB, "
          f"unrolling 100 iterations {slow:.2f} s and {large:.0f} MiB")  # fmt: skip
    untrained = right(tf.zeros([DIMENSIONS]))[0]
    logits, spent = learn("implicit", SOLVER, steps=60)
    share, solution = right(logits)
    print(f"right partners: {untrained:.1%} with equal weights, {share:.1%} with learned ones; "
          f"largest residual {float(tf.reduce_max(solution.residual)):.0e}")  # fmt: skip
    other = learn(UNROLLED, PLAIN, seconds=spent)[0]
    figure = matplotlib.figure.Figure(figsize=(7, 3.6), layout="constrained")
    drawn = {"equal": tf.zeros([DIMENSIONS]), "learned": logits}
    for axes, (title, weights) in zip(figure.subplots(1, 2), drawn.items(), strict=True):
        log_p = log_transport(costs(weights, *clouds(1, 32, seed=1_000_001)))[0]
        axes.imshow(tf.exp(log_p[0]), cmap="Blues", vmin=0, vmax=1)
        axes.set(title=f"{title} weights", xlabel="point j", ylabel="point i")
    figure.savefig(pathlib.Path(folder, "sinkhorn.png"), dpi=100)
    print(f"Unrolling 100 iterations, trained for the same {spent:.0f} s: {right(other)[0]:.1%}.")
    names = "finite", "unrolled", "mib", "unrolled mib", "untrained", "right", "right, unrolled"
    values = finite, unrolled, mib, large, untrained, share, right(other)[0]
    return dict(zip(names, values, strict=True))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".")
