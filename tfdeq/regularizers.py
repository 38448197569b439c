"""Penalties that keep a cell's fixed point easy to reach."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from ml_dtypes import finfo  # numpy's does not know bfloat16

from tfdeq.solvers.solver import require_integer, require_positive_integer


def jacobian_penalty(
    f: Callable[..., Any],
    z: Any,
    args: Any = (),
    probes: int = 1,
    *,
    power_steps: int = 0,
    seed: Any = None,
) -> tf.Tensor:
    """Estimates ‖∂f/∂z‖_F² / D as the mean squared entry of Jᵀε; unbiased for power_steps = 0.

    Hutchinson's estimator: E ‖Jᵀε‖² = ‖J‖_F² for noise ε of independent signs ±1, fresh in every
    call. With power_steps = p > 0 each sample's ε is first replaced, p times, by Jᵀε scaled back to
    unit mean square: the penalty then leans towards the direction that J amplifies most, the one
    that decides whether the iteration converges, and which noise in thousands of dimensions misses.
    The result is differentiable in args (through one application of f and its product), not in z,
    which is held fixed.

    Args:
        f: (z, *args) -> like z.
        z: nest of [B, ...] floating tensors, usually an equilibrium; D elements per sample.
        args: the tensors that a gradient should reach.
        probes: noise vectors to average over, >= 1. More probes, less variance. Default 1.
        power_steps: power iterations on each probe, >= 0, one product each. Default 0.
        seed: [2] integers for stateless noise, for a result that can be repeated. Default:
            TensorFlow's stateful generator.

    Returns:
        [] of z's dtype (the first leaf's).

    Raises:
        ValueError: if probes < 1 or power_steps < 0.

    Source: Bai, Koltun, Kolter, Stabilizing Equilibrium Models by Jacobian Regularization,
        arXiv:2106.14342, equation (6); the power iteration is our addition.

    Example:
        >>> z = tf.zeros([4, 3])
        >>> float(jacobian_penalty(lambda z: 0.0 * z, z))
        0.0
    """
    require_positive_integer("probes", probes)
    require_integer("power_steps", power_steps, lowest=0)
    leaves, product = _linearise(f, z, args)
    total = tf.zeros([], leaves[0].dtype)
    for probe in range(probes):
        vectors = [
            _signs(leaf, seed, probe * len(leaves) + index) for index, leaf in enumerate(leaves)
        ]
        for _ in range(power_steps):
            vectors = _unit_mean_square([tf.stop_gradient(part) for part in product(vectors)])
        for part in product(vectors):
            total += tf.cast(tf.reduce_sum(tf.square(part)), total.dtype)
    elements = tf.add_n([tf.size(leaf) for leaf in leaves])
    return total / tf.cast(elements * probes, total.dtype)


def spectral_radius(
    f: Callable[..., Any], z: Any, args: Any = (), steps: int = 30, *, seed: Any = None
) -> tf.Tensor:
    """Estimates the spectral radius of ∂f/∂z for each sample; below 1 plain iteration converges.

    Power iteration with Jᵀ, whose spectrum is J's, and then the two Ritz values of the plane that its
    last vector and the image of that span: the dominant eigenvalue may be a complex pair, as it
    often is, on which the quotient of two norms alone would go round in circles. The error falls
    with the gap to the third eigenvalue, (|λ₃| / |λ₁|)^steps. Nothing here carries a gradient.

    Args:
        f: (z, *args) -> like z, sample by sample.
        z: nest of [B, ...] floating tensors, usually an equilibrium.
        args: further arguments of f.
        steps: products of the power iteration, >= 1; two more are made. Default 30.
        seed: [2] integers for stateless noise at the start. Default: TensorFlow's generator.

    Returns:
        [B] float, of z's dtype (the first leaf's).

    Raises:
        ValueError: if steps < 1.

    Source: Bai, Koltun, Kolter, Stabilizing Equilibrium Models by Jacobian Regularization,
        arXiv:2106.14342, section 3; Saad, Numerical Methods for Large Eigenvalue Problems, 2011,
        sections 4.1 and 4.3.

    Example:
        >>> z = tf.zeros([2, 3])
        >>> [round(float(radius), 3) for radius in spectral_radius(lambda z: 0.5 * z, z)]
        [0.5, 0.5]
    """
    require_positive_integer("steps", steps)
    leaves, product = _linearise(f, z, tf.nest.map_structure(tf.stop_gradient, args))
    start = [_signs(leaf, seed, index) for index, leaf in enumerate(leaves)]

    def body(count, *vector):
        return count + 1, *_normalised(product(list(vector)))[0]

    _, *first = tf.while_loop(
        lambda count, *_: count < steps,
        body,
        (tf.constant(0), *_normalised(start)[0]),
        maximum_iterations=steps,
        parallel_iterations=1,
    )
    # The plane of the last vector and its image, by Rayleigh and Ritz.
    image = product(first)
    along = _inner(first, image)
    rest, length = _normalised(_minus(image, first, along))
    # Once more: where little was left, rounding is most of it, and not orthogonal.
    rest, _ = _normalised(_minus(rest, first, _inner(first, rest)))
    second_image = product(rest)
    a, b = along, _inner(first, second_image)
    c, d = length, _inner(rest, second_image)
    middle, determinant = (a + d) / 2, a * d - b * c
    square = middle * middle - determinant
    real = tf.abs(middle) + tf.sqrt(tf.abs(square))
    radius = tf.where(square >= 0, real, tf.sqrt(tf.abs(determinant)))
    # An eigenvector to rounding spans no plane with its image.
    rounding = tf.constant(100 * float(finfo(along.dtype.as_numpy_dtype).eps), along.dtype)
    radius = tf.where(length > rounding * tf.abs(along), radius, tf.abs(along))
    return tf.stop_gradient(radius)


def _linearise(
    f: Callable[..., Any], z: Any, args: Any
) -> tuple[list[tf.Tensor], Callable[[list[tf.Tensor]], list[tf.Tensor]]]:
    """The stopped leaves of z, and v -> Jᵀv there, leaf by leaf; differentiable in args."""
    args = tuple(args) if isinstance(args, tuple | list) else (args,)
    z = tf.nest.map_structure(lambda leaf: tf.stop_gradient(tf.convert_to_tensor(leaf)), z)
    leaves = tf.nest.flatten(z)
    # One linearisation serves every product; an outer tape sees through it to args.
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(leaves)
        output = f(z, *args)

    def product(cotangent):
        return tape.gradient(
            output,
            leaves,
            output_gradients=tf.nest.pack_sequence_as(z, cotangent),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )

    return leaves, product


def _inner(one: list[tf.Tensor], other: list[tf.Tensor]) -> tf.Tensor:
    """[B] inner products over all parts."""
    return tf.add_n(
        [
            tf.reduce_sum(tf.reshape(a * b, [tf.shape(a)[0], -1]), axis=1)
            for a, b in zip(one, other, strict=True)
        ]
    )


def _times(parts: list[tf.Tensor], factor: tf.Tensor) -> list[tf.Tensor]:
    """Multiplies sample b of each part by factor[b]."""
    return [
        part
        * tf.reshape(factor, tf.concat([tf.shape(factor), tf.ones_like(tf.shape(part)[1:])], 0))
        for part in parts
    ]


def _minus(parts: list[tf.Tensor], others: list[tf.Tensor], factor: tf.Tensor) -> list[tf.Tensor]:
    return [part - other for part, other in zip(parts, _times(others, factor), strict=True)]


def _normalised(parts: list[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Each sample at length 1 over all parts (zeros stay zeros), and the lengths [B]."""
    length = tf.sqrt(_inner(parts, parts))
    usable = length > 0
    return _times(parts, tf.where(usable, 1 / tf.where(usable, length, 1), 0)), length


def _signs(leaf: tf.Tensor, seed: Any, index: int) -> tf.Tensor:
    """Independent signs ±1 of the leaf's shape and dtype."""
    if seed is None:
        uniform = tf.random.uniform(tf.shape(leaf))
    else:
        offset = tf.convert_to_tensor([0, index], tf.int64)
        seed = tf.cast(tf.convert_to_tensor(seed), tf.int64) + offset
        uniform = tf.random.stateless_uniform(tf.shape(leaf), seed)
    return tf.where(uniform < 0.5, -tf.ones_like(leaf), tf.ones_like(leaf))


def _unit_mean_square(parts: list[tf.Tensor]) -> list[tf.Tensor]:
    """Scales each sample, over all parts, to mean square 1 (a sample of zeros stays zero)."""
    squares = _inner(parts, parts)
    elements = tf.add_n([tf.reduce_prod(tf.shape(part)[1:]) for part in parts])
    tiny = tf.cast(1e-12, squares.dtype)
    return _times(parts, tf.math.rsqrt(squares / tf.cast(elements, squares.dtype) + tiny))
