"""Root-finding problems in fixed-point form, from easy to badly scaled, with sources.

They work with any given array library, such as jax.numpy or tf.experimental.numpy.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Problem(NamedTuple):
    """f(library, z) = z for each row of z [B, D]; start [D] float64."""

    f: Callable[[Any, Any], Any]
    start: np.ndarray


def affine(radius: float, normal: bool, size: int = 40, seed: int = 0) -> Problem:
    """f(z) = zA + b, where A has the given spectral radius; not normal: ones above the diagonal."""
    random = np.random.default_rng(seed)
    eigenvalues = radius * random.uniform(-1, 1, size)
    # The eigenvalue closest to 1 decides how hard I − A is; −radius keeps I − A regular for radius
    # 1.5.
    eigenvalues[:2] = (-radius, radius if radius < 1 else 0.5 * radius)
    q, _ = np.linalg.qr(random.normal(size=(size, size)))
    middle = np.diag(eigenvalues)
    if not normal:
        middle = middle + np.diag(np.full(size - 1, 0.5), 1)
    a, b = q @ middle @ q.T, random.normal(size=size)
    return Problem(lambda xp, z: xp.matmul(z, a) + b, np.zeros(size))


def tanh_network(gain: float) -> Problem:
    """f(z) = tanh(zW + b), where W has independent entries and a spectral radius of about `gain`."""
    random, size = np.random.default_rng(0), 60
    w = gain * random.normal(size=(size, size)) / np.sqrt(size)
    b = random.normal(size=size)
    return Problem(lambda xp, z: xp.tanh(xp.matmul(z, w) + b), np.zeros(size))


def chandrasekhar(c: float) -> Problem:
    """H(μ) = 1 / (1 − (c/2) ∫₀¹ μ H(ν) / (μ + ν) dν) by the midpoint rule.

    Source: Kelley, Iterative Methods for Linear and Nonlinear Equations, 1995, section 5.6. Singular
    at c = 1.
    """
    size = 100
    nodes = (np.arange(size) + 0.5) / size
    kernel = 0.5 * c / size * nodes[:, None] / (nodes[:, None] + nodes[None, :])
    return Problem(lambda xp, z: 1.0 / (1.0 - xp.matmul(z, kernel.T)), np.ones(size))


def bratu(strength: float) -> Problem:
    """−Δu = λ e^u on the unit square, u = 0 on the boundary, by five-point differences scaled by h²/4.

    f is one Jacobi sweep: u ← (the mean of the neighbours) + λ h² e^u / 4. Singular at λ ≈ 6.81.
    """
    size = 12
    h = 1.0 / (size + 1)
    neighbours = np.zeros((size * size, size * size))
    for row in range(size):
        for column in range(size):
            for i, j in (
                (row - 1, column),
                (row + 1, column),
                (row, column - 1),
                (row, column + 1),
            ):
                if 0 <= i < size and 0 <= j < size:
                    neighbours[i * size + j, row * size + column] = 0.25
    scale = strength * h * h / 4
    start = np.zeros(size * size)
    return Problem(lambda xp, z: xp.matmul(z, neighbours) + scale * xp.exp(z), start)


def convection_diffusion(strength: float, size: int = 31) -> Problem:
    """−Δu + C u (u_x + u_y) = r on the unit square, u = 0 at its edge, central differences.

    r is such that the solution is `convection_diffusion_solution`. f solves Poisson's equation of the rest,
    u ← (−Δ)⁻¹ (r − C u (u_x + u_y)), by sine transforms.

    Source: Kelley, Solving Nonlinear Equations with Newton's Method, 2003, section 3.4.3, with C = 20.
    """
    h = 1.0 / (size + 1)
    places = np.arange(1, size + 1)
    sines = np.sqrt(2 * h) * np.sin(np.pi * h * places[:, None] * places[None, :])
    one_way = (2 - 2 * np.cos(np.pi * h * places)) / h**2
    eigenvalues = one_way[:, None] + one_way[None, :]
    slope = (np.eye(size, k=1) - np.eye(size, k=-1)) / (2 * h)
    laplacian = (2 * np.eye(size) - np.eye(size, k=1) - np.eye(size, k=-1)) / h**2
    solution = convection_diffusion_solution(size)

    def convection(xp, u):
        return strength * u * (xp.matmul(slope, u) + xp.matmul(u, slope.T))

    right_side = laplacian @ solution + solution @ laplacian + convection(np, solution)

    def f(xp, z):
        u = xp.reshape(z, [-1, size, size])
        transformed = xp.matmul(sines, xp.matmul(right_side - convection(xp, u), sines))
        u = xp.matmul(sines, xp.matmul(transformed / eigenvalues, sines))
        return xp.reshape(u, [-1, size * size])

    return Problem(f, np.zeros(size * size))


def convection_diffusion_solution(size: int = 31) -> np.ndarray:
    """10 x y (1 − x) (1 − y) exp(x^4.5) at the points of the grid, [size, size]."""
    x = (np.arange(size) + 1.0) / (size + 1)
    y = x[None, :]
    x = x[:, None]
    return 10 * x * y * (1 - x) * (1 - y) * np.exp(x**4.5)


def powell_badly_scaled() -> Problem:
    """10⁴ x y = 1, e^−x + e^−y = 1.0001, from (0, 1).

    Source: Moré, Garbow, Hillstrom, Testing Unconstrained Optimization Software, ACM TOMS 7(1), 1981,
    problem 3.
    """

    def f(xp, z):
        x, y = z[:, 0], z[:, 1]
        return z - xp.stack([1e4 * x * y - 1.0, xp.exp(-x) + xp.exp(-y) - 1.0001], axis=1)

    return Problem(f, np.array([0.0, 1.0]))


def powell_singular() -> Problem:
    """x + 10 y, √5 (u − v), (y − 2u)², √10 (x − v)², from (3, −1, 0, 1); singular at the root 0.

    Source: as above, problem 13. Shifted by 1, so that a relative residual is meaningful at the root.
    """

    def f(xp, z):
        x, y, u, v = ((z - 1.0)[:, i] for i in range(4))
        g = [x + 10.0 * y, 5**0.5 * (u - v), (y - 2.0 * u) ** 2, 10**0.5 * (x - v) ** 2]
        return z - 0.1 * xp.stack(g, axis=1)

    return Problem(f, np.array([3.0, -1.0, 0.0, 1.0]) + 1.0)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    **{
        f"affine {radius:g}{'' if normal else ', not normal'}": (
            lambda radius=radius, normal=normal: affine(radius, normal)
        )
        for radius in (0.5, 0.9, 0.99, 1.5)
        for normal in (True, False)
    },
    "tanh network 0.9": lambda: tanh_network(0.9),
    "tanh network 1.5": lambda: tanh_network(1.5),
    "tanh network 3": lambda: tanh_network(3.0),
    "Chandrasekhar 0.9": lambda: chandrasekhar(0.9),
    "Chandrasekhar 0.9999": lambda: chandrasekhar(0.9999),
    "Bratu 1": lambda: bratu(1.0),
    "Bratu 6": lambda: bratu(6.0),
    "convection-diffusion 20": lambda: convection_diffusion(20.0),
    "Powell badly scaled": powell_badly_scaled,
    "Powell singular": powell_singular,
}
