"""A dense cell with exactly one equilibrium for every input."""

import keras
import tensorflow as tf
from keras import ops

from tfdeq.cells.linear import checked_scale, linear
from tfdeq.cells.monotone import operators
from tfdeq.cells.monotone.parts import ExactParts
from tfdeq.solvers.solver import require_positive, require_positive_integer
from tfdeq.solvers.splitting import Splitting


@keras.saving.register_keras_serializable(package="tfdeq")
class MonotoneDense(keras.layers.Layer):
    """f(z, x) = relu(z W + x U + b), W = (1 − m) I − A Aᵀ + B − Bᵀ, for any A and B.

    I − W is strongly monotone, vᵀ(I − W) v >= m ‖v‖², because A Aᵀ only adds to the left side and B −
    Bᵀ does not change it. So every input has exactly one equilibrium, for all values that the weights
    may take in training, and the equilibrium is Lipschitz: ‖z*(x) − z*(y)‖ <= ‖U‖₂ ‖x − y‖ / m. A
    contraction, such as `DenseCell` with a contraction factor, has the same guarantee but can express
    fewer maps: here ‖W‖ is not bounded.

    Plain iteration may diverge. `tfdeq.PeacemanRachford` and `tfdeq.ForwardBackward` converge from every
    start; the cell provides the parts that they need in `splitting`. Other solvers find the same
    equilibrium if they converge. Half precision rounds W, which may reduce m by up to 2^−8 ‖W‖ (2^−11 ‖W‖
    in float16).

    Args:
        units: d, size of the state.
        monotonicity: m > 0. With a larger m, solves take fewer steps and the Lipschitz constant is
            smaller, but the cell can express fewer maps. Default 0.1.
        recurrent_scale: initial scale of A and B, >= 0: their entries start as N(0, 1 / d) times it.
            Default 0.5.

    Call arguments: z [B, ..., d]; x from `inject`. Returns [B, ..., d].

    Raises:
        ValueError: for settings out of range.

    Source: Winston, Kolter, Monotone operator equilibrium networks, arXiv:2006.08591, theorem 1 and
        proposition 1; the Lipschitz constant: Pabbaraju, Winston, Kolter, Estimating Lipschitz
        constants of monotone deep equilibrium models, ICLR 2021, theorem 1.

    Example:
        >>> from tfdeq import DEQLayer
        >>> layer = DEQLayer(MonotoneDense(4), solver="peaceman_rachford")
        >>> layer(keras.ops.ones([2, 3])).shape
        TensorShape([2, 4])
    """

    def __init__(
        self, units: int, monotonicity: float = 0.1, recurrent_scale: float = 0.5, **kwargs
    ):
        super().__init__(**kwargs)
        require_positive_integer("units", units)
        require_positive("monotonicity", monotonicity)
        self.units = units
        self.monotonicity = float(monotonicity)
        self.recurrent_scale = checked_scale("recurrent_scale", recurrent_scale)
        self.symmetric = linear(
            units, self.recurrent_scale, name="symmetric", dtype=self.dtype_policy
        )
        self.skew = linear(units, self.recurrent_scale, name="skew", dtype=self.dtype_policy)
        self.injection = keras.layers.Dense(units, dtype=self.dtype_policy, name="injection")

    def recurrent_kernel(self):
        """Returns W [d, d], in the weights' dtype; the cell computes z W."""
        for part in (self.symmetric, self.skew):
            if not part.built:
                part.build((None, self.units))
        a, b = (ops.convert_to_tensor(part.kernel) for part in (self.symmetric, self.skew))
        identity = ops.eye(self.units, dtype=a.dtype)
        return (
            (1 - self.monotonicity) * identity
            - ops.matmul(a, ops.transpose(a))
            + b
            - ops.transpose(b)
        )

    def metric(self):
        """Returns Λ > 0, [d]: the operator is monotone in the inner product Σ Λ_i v_i w_i."""
        return ops.ones([self.units], dtype=self.variable_dtype)

    def inject(self, x):
        """Returns the terms of the input x [B, ..., n] that are the same in every application.

        input: x U + b [B, ..., d]. kernel: W [1, d, d]. metric: Λ [1, d], see `metric`.
        """
        constant = self.injection(x)
        kernel = ops.cast(self.recurrent_kernel(), self.compute_dtype)
        return {"input": constant, "kernel": kernel[None], "metric": self.metric()[None]}

    def initial_state(self, x):
        """Returns zeros [B, ..., d]."""
        return ops.zeros((*ops.shape(x)[:-1], self.units), dtype=self.compute_dtype)

    def call(self, z, x):
        return ops.relu(_affine(z, x))

    def splitting(self, x):
        """Returns the parts of the cell as a `tfdeq.solvers.splitting.Splitting`; x: from `inject`."""
        kernel = operators.widened(x["kernel"])
        operator = tf.eye(self.units, dtype=kernel.dtype) - kernel
        # In terms of z √Λ, whose inner product is the ordinary one; the steps are the same for
        # both.
        scale = tf.sqrt(tf.cast(x["metric"][0], kernel.dtype))
        monotone = operator / scale[:, None] * scale

        def resolvent(step_size):
            inverse = operators.resolvent_matrices(operator, tf.cast(step_size, operator.dtype))[0]
            return lambda v: tf.cast(ops.matmul(tf.cast(v, inverse.dtype), inverse), v.dtype)

        return Splitting(
            affine=lambda z: tf.cast(_affine(tf.cast(z, x["kernel"].dtype), x), z.dtype),
            projection=tf.nn.relu,
            resolvent=resolvent,
            lipschitz=lambda: operators.lipschitz(monotone),
            cocoercivity=lambda: operators.cocoercivity(monotone),
        )

    def exact_parts(self, x):
        """Returns the cell for the inputs x [B, n] as `ExactParts`, for `tfdeq.certified_radius`.

        Raises:
            ValueError: for inputs of another rank.
        """
        if len(x.shape) != 2:
            raise ValueError(
                "A radius is certified of a MonotoneDense whose inputs are [batch, features]; received "
                f"shape {tuple(x.shape)}."
            )
        kernel, projection = (
            tf.cast(ops.cast(weight, self.compute_dtype), tf.float64)
            for weight in (self.recurrent_kernel(), self.injection.kernel)
        )
        bias = tf.cast(ops.convert_to_tensor(self.injection.bias), tf.float64)
        constant = tf.matmul(tf.cast(x, tf.float64), projection) + bias
        metric = tf.cast(self.metric(), tf.float64)
        scale = tf.sqrt(metric)
        operator = tf.eye(self.units, dtype=tf.float64) - kernel
        return ExactParts(
            affine=lambda z: tf.matmul(z, kernel) + constant,
            recurrent=lambda z: tf.matmul(z, kernel) * metric,
            operator=(operator / scale[:, None] * scale)[None],
            injection=(projection * scale)[None],
            transform=lambda v: (v / scale)[None],
            weights=tf.ones([1], tf.float64),
        )

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "monotonicity": self.monotonicity,
            "recurrent_scale": self.recurrent_scale,
        }


def _affine(z, x):
    return ops.matmul(z, x["kernel"][0]) + x["input"]
