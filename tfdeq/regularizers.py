"""The Jacobian penalty, which keeps a cell's fixed point easy to find, and the spectral radius."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from ml_dtypes import finfo  # numpy's finfo does not know bfloat16

from tfdeq.cell_calls.batch_part import ChosenRows
from tfdeq.numerics.arnoldi import krylov_space, largest_modulus
from tfdeq.numerics.state_layout import StateLayout
from tfdeq.rows import aligned
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
    call. With power_steps = p > 0, each sample's ε is first replaced p times by Jᵀε, scaled back to
    unit mean square. The penalty then emphasises the direction that J amplifies most. This direction
    determines whether the iteration converges, and noise in thousands of dimensions misses it.
    The result is differentiable with respect to args (through one application of f and its product), not
    with respect to z, which is held fixed.

    D counts only the elements that f reads, so padding that a mask keeps out of f
    does not dilute the penalty. In leaves [B, ..., features] with three or more dimensions, a place
    (an index of all axes but the last) is not counted if no output depends on any of its features. One
    more product finds these places; the mask itself is not needed. In leaves with fewer dimensions all
    elements count. Every element has the same weight: the squares of all samples are divided by the count
    of all samples, as in a loss that is a mean over tokens. For an empty batch the result is 0.

    Args:
        f: (z, *args) -> like z.
        z: nest of [B, ...] floating tensors, usually an equilibrium; D elements in all.
        args: tuple of the tensors that a gradient should reach.
        probes: number of noise vectors to average over, >= 1. More probes reduce the variance. Default 1.
        power_steps: power iterations on each probe, >= 0, one product each. Default 0.
        seed: [2] integers for stateless noise, which makes the result reproducible. Each probe and
            each leaf has its own noise, which no other seed produces. Default: TensorFlow's
            stateful generator.

    Returns:
        A scalar, float64 if a leaf of z is float64, else float32; half precision is squared and
        summed in float32.

    Raises:
        ValueError: if probes < 1 or power_steps < 0.

    Source: Bai, Koltun, Kolter, Stabilizing Equilibrium Models by Jacobian Regularization,
        arXiv:2106.14342, equation (6); the power iteration and the count are additions.

    Example:
        >>> z = tf.zeros([4, 3])
        >>> float(jacobian_penalty(lambda z: 0.0 * z, z))
        0.0
    """
    require_positive_integer("probes", probes)
    require_integer("power_steps", power_steps, lowest=0)
    return estimated_penalty(f, z, args, probes, power_steps, seed)


def estimated_penalty(
    f: Callable[..., Any],
    z: Any,
    args: Any,
    probes: int,
    power_steps: int,
    seed: Any,
    chosen: ChosenRows | None = None,
) -> tf.Tensor:
    """Returns `jacobian_penalty` for some of the rows chosen in a batch, with the noise of these rows.

    Args:
        chosen: which of all chosen rows the rows of z are; their noise follows from the seed and
            this position. Default None: the rows of z are all chosen rows.
    """
    leaves, product = _linearise(f, z, args)
    dtype = StateLayout(leaves).dtype
    elements = tf.cast(_elements(leaves, product, seed), dtype)
    if chosen is not None and chosen.there is not None:
        elements *= tf.cast(chosen.there, dtype)
    total = tf.zeros([], dtype)
    for probe in range(probes):
        vectors = [
            _signs(leaf, seed, probe * len(leaves) + index, chosen)
            for index, leaf in enumerate(leaves)
        ]
        for _ in range(power_steps):
            images = [tf.stop_gradient(part) for part in product(vectors)]
            vectors = _unit_mean_square(images, elements)
        for part in product(vectors):
            total += tf.reduce_sum(tf.square(tf.cast(part, dtype)))
    return total / (probes * tf.maximum(tf.reduce_sum(elements), 1))


def spectral_radius(
    f: Callable[..., Any],
    z: Any,
    args: Any = (),
    steps: int = 30,
    *,
    seed: Any = None,
    return_error: bool = False,
) -> Any:
    """Estimates the spectral radius of ∂f/∂z for each sample; if it is below 1, plain iteration converges.

    The estimate is the largest modulus of the Ritz values in a Krylov space of `steps` vectors, made by
    Arnoldi's process with Jᵀ, which has the spectrum of J. The space has at most 30 vectors; further steps
    are power iterations on its start. The result is exact, up to rounding, if steps reach the number of
    elements. If the space is too small, for example for an orthogonal J with many eigenvalues of the same
    modulus, the growth of ‖J^n v‖ over the later half of the steps raises the result. For a normal J the
    result is never too large. On random, symmetric, orthogonal and rotating J of up to 400 elements it was
    at most 4 % too small.

    For a J far from normal the result can be too large. An example is a shift of more than `steps`
    elements that ends in zeros: its radius is 0, but vectors grow during all `steps` products, and
    so do the iterates. A defective eigenvalue, of a Jordan block of size k, is accurate only to the
    k-th root of the rounding error.

    The result has no gradient. The function keeps `steps` vectors like z in memory, at most 30.

    Args:
        f: (z, *args) -> like z, sample by sample.
        z: nest of [B, ...] floating tensors, usually an equilibrium.
        args: further arguments of f.
        steps: products with the Jacobian, >= 1. Default 30.
        seed: [2] integers for stateless noise at the start. Default: TensorFlow's generator.
        return_error: return (radius, error). The error is an estimate, not a bound: the distance of the Ritz
            vector from an eigenvector, plus the part that growth added, plus rounding. For a J far from
            normal the true error may be larger. Default False.

    Returns:
        [B], float64 if a leaf of z is float64, else float32; with return_error two such tensors.

    Raises:
        ValueError: if steps < 1.

    Source: Bai, Koltun, Kolter, Stabilizing Equilibrium Models by Jacobian Regularization,
        arXiv:2106.14342, section 3; Saad, Numerical Methods for Large Eigenvalue Problems, 2011,
        sections 4.1 and 6.2. For a normal J the growth never exceeds the radius by Gelfand's
        formula and the Cauchy-Schwarz inequality.

    Example:
        >>> z = tf.zeros([2, 3])
        >>> [round(float(radius), 3) for radius in spectral_radius(lambda z: 0.5 * z, z)]
        [0.5, 0.5]
    """
    require_positive_integer("steps", steps)
    leaves, product = _linearise(f, z, tf.nest.map_structure(tf.stop_gradient, args))
    layout = StateLayout(leaves)
    start = layout.flatten([_signs(leaf, seed, index) for index, leaf in enumerate(leaves)])
    # Vectors are scaled to mean square 1, far from both ends of float16's range.
    size = tf.sqrt(tf.cast(tf.maximum(tf.shape(start)[1], 1), layout.dtype))
    space = krylov_space(
        lambda vector: layout.flatten(product(layout.unflatten(vector * size))) / size, start, steps
    )
    rounding = 10 * max(float(finfo(leaf.dtype.as_numpy_dtype).eps) for leaf in leaves)
    radius, error = (
        tf.stop_gradient(tf.cast(value, layout.dtype)) for value in largest_modulus(space, rounding)
    )
    return (radius, error) if return_error else radius


def _linearise(
    f: Callable[..., Any], z: Any, args: Any
) -> tuple[list[tf.Tensor], Callable[[list[tf.Tensor]], list[tf.Tensor]]]:
    """Returns the leaves of z without a gradient, and v -> Jᵀv, leaf by leaf, differentiable in args."""
    args = tuple(args) if isinstance(args, tuple | list) else (args,)
    z = tf.nest.map_structure(lambda leaf: tf.stop_gradient(tf.convert_to_tensor(leaf)), z)
    leaves = tf.nest.flatten(z)
    # One linearisation serves every product, and an outer tape can differentiate it with respect to
    # args.
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


def _elements(leaves: list[tf.Tensor], product: Callable[..., Any], seed: Any) -> tf.Tensor:
    """[B] float32: how many elements of each sample the penalty counts."""
    sizes = [tf.cast(tf.reduce_prod(tf.shape(leaf)[1:]), tf.float32) for leaf in leaves]
    batch = tf.shape(leaves[0])[:1]
    if all(leaf.shape.rank < 3 for leaf in leaves):
        return tf.fill(batch, tf.add_n(sizes))
    # For some Jacobians, sums of signs cancel exactly; sums of normal noise do not.
    noise = [
        tf.cast(_noise("normal", tf.shape(leaf), seed, -1 - index), leaf.dtype)
        for index, leaf in enumerate(leaves)
    ]
    counts = tf.zeros(batch, tf.float32)
    for leaf, size, part in zip(leaves, sizes, product(noise), strict=True):
        if leaf.shape.rank < 3:
            counts += size
            continue
        read = tf.cast(tf.reduce_any(part != 0, axis=-1), tf.float32)
        features = tf.cast(tf.shape(leaf)[-1], tf.float32)
        counts += features * tf.reduce_sum(read, axis=list(range(1, leaf.shape.rank - 1)))
    return tf.stop_gradient(counts)


def _signs(leaf: tf.Tensor, seed: Any, index: int, chosen: ChosenRows | None = None) -> tf.Tensor:
    """Returns independent signs ±1 of the leaf's shape and dtype; zeros in rows that are only padding."""
    if chosen is None or chosen.numbers is None:
        uniform = _noise("uniform", tf.shape(leaf), seed, index)
        return tf.where(uniform < 0.5, -tf.ones_like(leaf), tf.ones_like(leaf))
    shape = tf.concat([[chosen.total], tf.shape(leaf)[1:]], axis=0)
    uniform = tf.gather(_noise("uniform", shape, seed, index), chosen.numbers)
    signs = tf.where(uniform < 0.5, -tf.ones_like(leaf), tf.ones_like(leaf))
    return tf.where(aligned(chosen.there, leaf), signs, tf.zeros_like(leaf))


def _noise(name: str, shape: tf.Tensor, seed: Any, index: int) -> tf.Tensor:
    """Returns "uniform" or "normal" noise of a shape, float32."""
    if seed is None:
        return getattr(tf.random, name)(shape)
    # The index is hashed into the seed: [s, t + 1] would be the next seed of a seed generator.
    seed = tf.cast(tf.convert_to_tensor(seed), tf.int64)
    seed = tf.random.experimental.stateless_fold_in(seed, tf.constant(index, tf.int64))
    return getattr(tf.random, f"stateless_{name}")(shape, seed)


def _unit_mean_square(parts: list[tf.Tensor], elements: tf.Tensor) -> list[tf.Tensor]:
    """Scales each sample to mean square 1 over the elements that count; zeros stay zeros."""
    axes = [list(range(1, part.shape.rank)) for part in parts]
    wide = [tf.cast(part, elements.dtype) for part in parts]
    largest = [tf.reduce_max(tf.abs(part), axis) for part, axis in zip(wide, axes, strict=True)]
    # Divided by the largest value first, so that no square overflows or underflows.
    scale = tf.reduce_max(tf.stack(largest), axis=0)
    wide = [_divided(part, scale) for part in wide]
    squares = tf.add_n(
        [tf.reduce_sum(tf.square(part), axis) for part, axis in zip(wide, axes, strict=True)]
    )
    length = tf.sqrt(squares / tf.maximum(elements, 1))
    return [
        tf.cast(_divided(part, length), leaf.dtype) for part, leaf in zip(wide, parts, strict=True)
    ]


def _divided(part: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    return part / aligned(tf.where(length == 0, tf.ones_like(length), length), part)
