"""A convolutional cell of several resolutions with exactly one equilibrium for every image."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfdeq.cells.linear import checked_scale
from tfdeq.cells.monotone import circular, coarse_grid, operators
from tfdeq.cells.monotone.parts import ExactParts
from tfdeq.solvers.solver import require_positive, require_positive_integer
from tfdeq.solvers.splitting import Splitting


@keras.saving.register_keras_serializable(package="tfdeq")
class MonotoneMultiscaleConvolution(keras.layers.Layer):
    """f(z, x) = relu(W z + U x + b), W = (1 − m) I − AᵀA + B − Bᵀ, at several resolutions.

    The state is a list of one tensor for each branch (a tier of the paper). The first branch has the
    image's rows and columns, each further one half those of the one before. With circular convolutions
    A_t, B_t and U, and circular convolutions D_t of stride 2,
        (A z)_t = A_t z_t + D_t z_(t−1),    (B z)_t = B_t z_t,    (U x)_0 = U x, and 0 for the others.
    The image reaches the further branches through AᵀA.

    The guarantees are those of `MonotoneConvolution`: exactly one equilibrium for every image, and the
    Lipschitz constant ‖U‖₂ / m. Rounding of the weights to half precision does not change them.

    The splitting methods see all branches on the grid of the last one, where W is a circular convolution
    with n = Σ_t 4^(T−1−t) C_t channels for T branches; its Fourier transform is one matrix [2n, 2n] per
    frequency. `tfdeq.PeacemanRachford` inverts these matrices once per solve, and both methods compute
    their step sizes from them, unless they have a `step_size`. This is cheap for filters=(16, 32), where n
    is 96. It takes much longer than the rest of the solve for (16, 32, 32), where n is 416: then use
    `tfdeq.ForwardBackward` with a step_size, or a solver that only evaluates the cell, such as
    `tfdeq.Anderson`.

    XLA's convolutions are slow on CPUs, so do not use jit_compile there.

    Args:
        filters: C_t, channels of each branch, from the highest resolution to the lowest. Default (16, 32).
        kernel_size: k of all convolutions, odd. Default 3.
        monotonicity: m > 0; see `MonotoneDense`. Default 0.1.
        recurrent_scale: initial scale of A and B, >= 0: the entries of a kernel with n inputs start as
            N(0, 1 / (k² n)) times it. Default 0.5.

    Call arguments: z: list of [B, H / 2^t, W / 2^t, C_t]; x from `inject`, for images [B, H, W, n] whose H
    and W are multiples of 2^(T−1). Returns the same as z.

    Raises:
        ValueError: for settings out of range, or an input that is not a batch of images of such a size.

    Source: Winston, Kolter, Monotone operator equilibrium networks, arXiv:2006.08591, section 4 on
        multi-tier networks; the Lipschitz constant: Pabbaraju, Winston, Kolter, ICLR 2021, theorem 1.

    Example:
        >>> from tfdeq import DEQLayer
        >>> layer = DEQLayer(MonotoneMultiscaleConvolution((4, 6)), solver="peaceman_rachford")
        >>> [branch.shape for branch in layer(keras.ops.ones([2, 4, 6, 3]))]
        [TensorShape([2, 4, 6, 4]), TensorShape([2, 2, 3, 6])]
    """

    def __init__(
        self,
        filters: Sequence[int] = (16, 32),
        kernel_size: int = 3,
        monotonicity: float = 0.1,
        recurrent_scale: float = 0.5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = list(filters)
        if not self.filters:
            raise ValueError("filters must have one entry for each branch; received none.")
        for size in self.filters:
            require_positive_integer("filters", size)
        require_positive_integer("kernel_size", kernel_size)
        require_positive("monotonicity", monotonicity)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd; received {kernel_size!r}.")
        self.kernel_size = kernel_size
        self.monotonicity = float(monotonicity)
        self.recurrent_scale = checked_scale("recurrent_scale", recurrent_scale)

        def convolutions(name, first=0):
            return [
                self._convolution(self.filters[place], f"{name}_{place}", self.recurrent_scale)
                for place in range(first, len(self.filters))
            ]

        self.symmetric = convolutions("symmetric")
        self.down = convolutions("down", first=1)
        self.skew = convolutions("skew")
        self.injection = self._convolution(self.filters[0], "injection")
        self.bias = [
            self.add_weight(shape=(size,), initializer="zeros", name=f"bias_{place}")
            for place, size in enumerate(self.filters)
        ]

    def _convolution(self, filters: int, name: str, scale: float = 1.0) -> circular.CircularKernel:
        return circular.CircularKernel(
            filters, self.kernel_size, scale, dtype=self.dtype_policy, name=name
        )

    def recurrent_kernels(self):
        """Returns the kernels that W is made of, rounded to the cell's compute dtype.

        Lists of [k, k, n, C]: symmetric, A_t; down, D_t for t >= 1; skew, B_t − B_tᵀ.
        """
        inputs = [*self.filters, *self.filters[:-1], *self.filters]
        parts = [*self.symmetric, *self.down, *self.skew]
        for part, size in zip(parts, inputs, strict=True):
            if not part.built:
                part.build((None, None, None, size))
        symmetric, down, skew = (
            [ops.convert_to_tensor(part.kernel) for part in group]
            for group in (self.symmetric, self.down, self.skew)
        )
        kernels = {
            "symmetric": symmetric,
            "down": down,
            "skew": [kernel - circular.adjoint_kernel(kernel) for kernel in skew],
        }
        return tf.nest.map_structure(lambda kernel: ops.cast(kernel, self.compute_dtype), kernels)

    def inject(self, x):
        """Returns the terms of the images x [B, H, W, n] that are the same in every application.

        input: list, U x + b_0 [B, H, W, C_0] and the other b_t [1, 1, 1, C_t]. kernels: those of
        `recurrent_kernels`, [1, k, k, n, C].
        """
        self._check(x)
        bias = [ops.cast(each, self.compute_dtype)[None, None, None] for each in self.bias]
        kernels = tf.nest.map_structure(lambda kernel: kernel[None], self.recurrent_kernels())
        return {"input": [self.injection(x) + bias[0], *bias[1:]], "kernels": kernels}

    def initial_state(self, x):
        """Returns zeros for each branch, for the images x [B, H, W, n]."""
        self._check(x)
        batch, rows, columns = (
            ops.shape(x)[axis] if x.shape[axis] is None else x.shape[axis] for axis in range(3)
        )
        return [
            ops.zeros((batch, rows // 2**place, columns // 2**place, size), self.compute_dtype)
            for place, size in enumerate(self.filters)
        ]

    def _check(self, x) -> None:
        count = len(self.filters)
        factor = 2 ** (count - 1)
        if len(x.shape) == 4 and not any(size and size % factor for size in x.shape[1:3]):
            return
        wanted = ""
        if factor > 1:
            wanted = f" whose rows and columns are multiples of {factor}, for its {count} branches"
        raise ValueError(
            f"MonotoneMultiscaleConvolution takes images [batch, rows, columns, channels]{wanted}; received "
            f"shape {tuple(x.shape)}. A keras.layers.ZeroPadding2D before it makes images larger."
        )

    def call(self, z, x):
        return [ops.relu(branch) for branch in self._affine(z, x)]

    def _affine(self, z, x):
        kernels = tf.nest.map_structure(lambda kernel: kernel[0], x["kernels"])
        moved = _recurrent(z, kernels, self.monotonicity)
        return [branch + constant for branch, constant in zip(moved, x["input"], strict=True)]

    def splitting(self, x):
        """Returns the parts of the cell as a `tfdeq.solvers.splitting.Splitting`; x: from `inject`."""
        kernels = tf.nest.map_structure(lambda kernel: operators.widened(kernel[0]), x["kernels"])
        dtype = kernels["skew"][0].dtype
        compute_dtype = x["input"][0].dtype
        size = self._coarse_size(x["input"][0])

        def operator():
            return self._operator(kernels, size)

        def resolvent(step_size):
            inverse = operators.resolvent_matrices(operator(), tf.cast(step_size, dtype))

            def apply(v):
                moved = circular.apply_symbol(coarse_grid.joined(_cast(v, dtype)), inverse, size)
                return _cast(coarse_grid.separated(moved, self.filters), v[0].dtype)

            return apply

        return Splitting(
            affine=lambda z: _cast(self._affine(_cast(z, compute_dtype), x), z[0].dtype),
            projection=lambda z: tf.nest.map_structure(tf.nn.relu, z),
            resolvent=resolvent,
            lipschitz=lambda: operators.lipschitz(operator()),
            cocoercivity=lambda: operators.cocoercivity(operator()),
        )

    def exact_parts(self, x):
        """Returns the cell for the images x [B, H, W, n] as `ExactParts`, for `tfdeq.certified_radius`."""

        def exact(weight):
            return tf.cast(ops.cast(weight, self.compute_dtype), tf.float64)

        kernels = tf.nest.map_structure(exact, self.recurrent_kernels())
        projection = exact(self.injection.kernel)
        constants = [exact(each) for each in self.bias]
        constants[0] += circular.circular_convolution(tf.cast(x, tf.float64), projection)
        size = self._coarse_size(x)

        def recurrent(z):
            return _recurrent(z, kernels, self.monotonicity)

        def affine(z):
            return [
                branch + constant for branch, constant in zip(recurrent(z), constants, strict=True)
            ]

        return ExactParts(
            affine=affine,
            recurrent=recurrent,
            operator=self._operator(kernels, size),
            injection=circular.symbol(self._coarse_projection(projection), size),
            transform=lambda z: circular.transformed(coarse_grid.joined(z), size),
            weights=circular.frequency_weights(size),
        )

    def _operator(self, kernels: Mapping[str, Any], size: tuple) -> tf.Tensor:
        """Returns I − W as real matrices [frequencies, 2n, 2n], on the last branch's grid (rows, columns)."""
        count = self._coarse_channels
        kernel = coarse_grid.kernel_of(
            lambda v: coarse_grid.joined(
                _recurrent(coarse_grid.separated(v, self.filters), kernels, self.monotonicity)
            ),
            count,
            # Two convolutions one after another, at most.
            2 * (self.kernel_size // 2),
            kernels["skew"][0].dtype,
        )
        return tf.eye(2 * count, dtype=kernel.dtype) - circular.symbol(kernel, size)

    def _coarse_projection(self, projection: tf.Tensor) -> tf.Tensor:
        """Returns the kernel of U on the last branch's grid, [k, k, 4^(T−1) channels, n]."""
        factor = 2 ** (len(self.filters) - 1)

        def apply(v):
            x = circular.circular_convolution(coarse_grid.to_places(v, factor), projection)
            return coarse_grid.to_channels(x, factor)

        inputs = factor**2 * projection.shape[2]
        kernel = coarse_grid.kernel_of(apply, inputs, self.kernel_size // 2, projection.dtype)
        others = self._coarse_channels - kernel.shape[-1]
        return tf.pad(kernel, [[0, 0], [0, 0], [0, 0], [0, others]])

    @property
    def _coarse_channels(self) -> int:
        """n, the channels of all branches on the last one's grid."""
        cells = coarse_grid.cell_sizes(len(self.filters))
        return sum(size**2 * count for size, count in zip(cells, self.filters, strict=True))

    def _coarse_size(self, images: tf.Tensor) -> tuple:
        """Returns the rows and columns of the last branch, as Python integers where they are known."""
        known, shape = images.shape, tf.shape(images)
        factor = 2 ** (len(self.filters) - 1)
        return tuple(
            (shape[axis] if known[axis] is None else known[axis]) // factor for axis in (1, 2)
        )

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "monotonicity": self.monotonicity,
            "recurrent_scale": self.recurrent_scale,
        }


def _recurrent(z: Sequence, kernels: Mapping[str, Any], monotonicity: float) -> list:
    """Returns W z for the branches z."""
    symmetric, down, skew = (kernels[name] for name in ("symmetric", "down", "skew"))
    parts = [  # A z
        circular.circular_convolution(branch, kernel)
        for branch, kernel in zip(z, symmetric, strict=True)
    ]
    for place, kernel in enumerate(down):
        parts[place + 1] += circular.circular_convolution(z[place], kernel, stride=2)
    squares = [  # AᵀA z
        circular.adjoint_convolution(part, kernel)
        for part, kernel in zip(parts, symmetric, strict=True)
    ]
    for place, kernel in enumerate(down):
        squares[place] += circular.adjoint_convolution(parts[place + 1], kernel, stride=2)
    return [
        (1 - monotonicity) * branch - square + circular.circular_convolution(branch, kernel)
        for branch, square, kernel in zip(z, squares, skew, strict=True)
    ]


def _cast(z: Sequence, dtype: Any) -> list:
    return [tf.cast(branch, dtype) for branch in z]
