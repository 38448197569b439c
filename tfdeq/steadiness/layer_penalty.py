"""The weighted Jacobian penalty, on some rows of the batch, that a `DEQLayer` adds to the loss."""

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfdeq.cell_calls import batch_part
from tfdeq.regularizers import estimated_penalty
from tfdeq.rows import choose, rows_of, take_rows
from tfdeq.solution import Solution
from tfdeq.solvers.solver import require_integer
from tfdeq.steadiness.training_control import TrainingControl

AUTO = "auto"
# The weight that a callback's scale multiplies if the layer has no penalty of its own.
BASE_WEIGHT = 0.1
# With a larger residual there is no equilibrium, so the implicit gradient is meaningless.
LARGEST_RESIDUAL = 0.1
# Plain noise hardly sees the few directions in which a solve diverges, such as one common to all
# places.
POWER_STEPS = 2


class LayerPenalty:
    """The weighted penalty of a layer's call in training; see `DEQLayer`.

    Args:
        weight: a number >= 0, or "auto".
        fraction: share of the batch, in (0, 1].
        power_steps: those of `tfdeq.jacobian_penalty`.

    Raises:
        ValueError: for settings out of range.
    """

    def __init__(self, weight: float | str, fraction: float, power_steps: int):
        self.weight = _checked_weight(weight)
        require_integer("jacobian_penalty_power_steps", power_steps, lowest=0)
        if not 0.0 < float(fraction) <= 1.0:
            raise ValueError(f"jacobian_penalty_fraction must be in (0, 1]; received {fraction!r}.")
        self.fraction = float(fraction)
        self.power_steps = int(power_steps)
        if self.weight == AUTO:
            self.power_steps = max(self.power_steps, POWER_STEPS)

    def __call__(
        self,
        f: Callable[..., Any],
        args: tuple[Any, Any, Any, Any],
        residual: tf.Tensor,
        control: TrainingControl,
        next_seed: Callable[[], tf.Tensor],
    ) -> tf.Tensor | None:
        """Returns a scalar to add to the loss; None: nothing to add.

        Args:
            f: (z, x, theta, masks) -> like z. args: z, x, theta and masks, which may be empty.
            residual: [B] float32, of z. control: has the current factor of the weight.
            next_seed: () -> a new seed, [2] integers.
        """
        if not self.weight and not control.active:
            return None
        seeds = [next_seed(), next_seed()] if self._chooses_rows() else [None, next_seed()]

        def penalty(args: Any, power_steps: int = self.power_steps) -> tf.Tensor:
            return self._estimate(f, args, *seeds, power_steps)

        def heavy(args: Any) -> tf.Tensor:
            return penalty(args, max(self.power_steps, POWER_STEPS))

        def none(args: Any) -> tf.Tensor:
            return tf.zeros([], tf.float64 if _is_double(args[0]) else tf.float32)

        if not control.active:
            value = penalty(args)
            return tf.cast(self._weight(residual), value.dtype) * value
        value = _one_of(control.is_raised(), heavy, penalty if self.weight else none, args)
        weight = control.penalty_scale.read() * self._weight(residual)
        return tf.cast(weight, value.dtype) * value

    def gated(self, solution: Solution, control: TrainingControl) -> Solution:
        """Returns the solution of a solve, without a gradient of z if the batch has no equilibrium.

        This applies only to "auto", or while a callback has raised the penalty. Then only the penalty
        trains the cell until there are equilibria again.
        """
        if self.weight != AUTO and not control.active:
            return solution
        found = _mean_residual(solution.residual) <= LARGEST_RESIDUAL
        if self.weight != AUTO:
            found |= ~control.is_raised()
        found = tf.broadcast_to(found, tf.shape(solution.residual))
        held = tf.nest.map_structure(tf.stop_gradient, solution.z)
        # A choice, not a product with zero, so that an infinite gradient is also excluded.
        return solution._replace(z=choose(found, solution.z, held))

    def _weight(self, residual: tf.Tensor) -> Any:
        if self.weight != AUTO:
            return self.weight or BASE_WEIGHT
        return automatic_weight(residual)

    def _chooses_rows(self) -> bool:
        return self.fraction < 1.0 or batch_part.current() is not None

    def _estimate(
        self, f: Any, args: Any, rows_seed: Any, noise_seed: Any, power_steps: int
    ) -> tf.Tensor:
        z, x, theta, masks = args
        part, chosen = batch_part.current(), None
        if rows_seed is not None:
            batch = rows_of(tf.nest.flatten(z)[0])
            chosen = batch_part.choose_rows(batch, self.fraction, rows_seed, part)
            if self.fraction < 1.0:
                z, x, masks = take_rows((z, x, masks), chosen.rows)
        penalty = estimated_penalty(
            f,
            z,
            (x, theta, masks) if masks else (x, theta),
            probes=1,
            power_steps=power_steps,
            seed=noise_seed,
            chosen=chosen,
        )
        if chosen is not None and chosen.there is not None:
            # All parts have the same weight in their mean, which must equal the mean over the rows.
            here = tf.cast(tf.math.count_nonzero(chosen.there), penalty.dtype)
            penalty *= here * part.count / tf.cast(tf.maximum(chosen.total, 1), penalty.dtype)
        return penalty


def _one_of(
    condition: tf.Tensor,
    one: Callable[[Any], tf.Tensor],
    other: Callable[[Any], tf.Tensor],
    args: Any,
) -> tf.Tensor:
    """Returns the scalar one(args) or other(args), and computes only the chosen one.

    Its gradient in args is computed together with it, because XLA cannot compile the gradient of a
    tf.cond whose branches store tensors of unknown sizes for it. There is no second derivative.
    """
    leaves = tf.nest.flatten(args)
    places = [place for place, leaf in enumerate(leaves) if leaf.dtype.is_floating]

    def with_gradient(function: Callable[[Any], tf.Tensor], inputs: Any) -> list[tf.Tensor]:
        inputs = [tf.identity(leaf) for leaf in inputs]
        given = list(leaves)
        for place, leaf in zip(places, inputs, strict=True):
            given[place] = leaf
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            value = function(tf.nest.pack_sequence_as(args, given))
        gradients = tape.gradient(value, inputs, unconnected_gradients="zero")
        return [value, *(tf.convert_to_tensor(gradient) for gradient in gradients)]

    @tf.custom_gradient
    def chosen(*inputs):
        value, *gradients = tf.cond(
            condition,
            lambda: with_gradient(one, inputs),
            lambda: with_gradient(other, inputs),
        )
        return value, lambda upstream: [
            tf.cast(upstream, gradient.dtype) * gradient for gradient in gradients
        ]

    return chosen(*(leaves[place] for place in places))


def automatic_weight(residual: tf.Tensor) -> tf.Tensor:
    """Returns the penalty's weight in a step with "auto", a float32 scalar that grows with the residual.

    w = 0.1 + 10 · r, where r is the mean of the samples' relative residuals, each at most 1 (also if f
    was not finite).

    Args:
        residual: [B] float32.
    """
    return BASE_WEIGHT + 10.0 * _mean_residual(residual)


def _mean_residual(residual: tf.Tensor) -> tf.Tensor:
    """Returns the mean over the samples, a float32 scalar, with each value at most 1; 0 for no samples."""
    residual = tf.stop_gradient(tf.cast(residual, tf.float32))
    each = tf.where(residual < 1.0, residual, 1.0)
    return tf.reduce_sum(each) / tf.cast(tf.maximum(tf.size(each), 1), tf.float32)


def _checked_weight(weight: float | str) -> float | str:
    if isinstance(weight, str):
        if weight == AUTO:
            return weight
    elif 0.0 <= float(weight) < math.inf:
        return float(weight)
    raise ValueError(
        f'jacobian_penalty must be a finite number >= 0, or "auto"; received {weight!r}.'
    )


def _is_double(z: Any) -> bool:
    return any(leaf.dtype == tf.float64 for leaf in tf.nest.flatten(z))
