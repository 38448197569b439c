"""Ordinary backpropagation through the last applications of f."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeq.adjoints.adjoint import (
    Adjoint,
    floating_leaves,
    vector_jacobian_product,
    with_floating_leaves,
)
from tfdeq.adjoints.differentiation import differentiated
from tfdeq.compaction import BoundFunction
from tfdeq.iteration import iterate
from tfdeq.numerics.function_evaluation import check_variables
from tfdeq.numerics.state_layout import StateLayout
from tfdeq.rows import choose
from tfdeq.solution import Solution, Status
from tfdeq.solvers import FixedPointIteration
from tfdeq.solvers.solver import require_positive_integer


@keras.saving.register_keras_serializable(package="tfdeq")
@dataclasses.dataclass(frozen=True)
class Unrolled(Adjoint):
    """Backpropagation through the last k applications z ← f(z, args).

    The solver makes at most max_steps − k evaluations without gradient. Then f is applied k times with
    gradient. The gradient is exactly that of these k applications, of any order. With J = ∂f/∂z at z*
    it approximates u = (I − J)^(−T) dz by Σ_{i<k} (Jᵀ)^i dz, exact as k → ∞ if f is a contraction. With
    k = max_steps there is no solve, only plain backpropagation from z0 (which gets no gradient here
    either). A sample whose max_steps is below k has max_steps applications.

    The solution is the result of the last application. Its residual takes one more evaluation, which
    `Solution.steps` counts: up to max_steps + 1. If plain iteration stays above the
    tolerance, the result is z_{max_steps} for every k. A sample for which f is not finite keeps its last
    state.

    Args:
        steps: k >= 1. Default 10.
        checkpointed: keep only the k states for the backward pass, and recompute the intermediates of f,
            one application at a time. The gradient is the same. Memory is k states and the intermediates of
            one application instead of k; the cost is one more evaluation per application.
            Default True.

    Raises:
        ValueError: for a setting out of range.

    Source: Bai, Kolter, Koltun, Deep Equilibrium Models, arXiv:1909.01377, section 3 (the weight-tied
        network); Chen, Xu, Zhang, Guestrin, Training Deep Nets with Sublinear Memory Cost,
        arXiv:1604.06174.

    Example:
        >>> x = tf.ones([1, 1])
        >>> with tf.GradientTape() as tape:
        ...     tape.watch(x)
        ...     z = fixed_point(lambda z, x: 0.5 * z + x, x, (x,), adjoint=Unrolled(3)).z
        >>> float(tape.gradient(z, x)[0, 0])  # 1 + 1/2 + 1/4; the equilibrium's is 2
        1.75
    """

    steps: int = 10
    checkpointed: bool = True

    def __post_init__(self):
        require_positive_integer("steps", self.steps)

    def solve(self, f, z0, args, settings):
        solver, limits = self._require_whole_solve(settings), settings.limits
        z0 = tf.nest.map_structure(lambda leaf: tf.stop_gradient(tf.convert_to_tensor(leaf)), z0)
        layout = StateLayout(z0)
        batch = tf.shape(tf.nest.flatten(z0)[0])[:1]
        most = limits.most_steps(solver)
        budget = limits.resolved(solver, batch, layout.dtype).max_steps
        recorded = tf.minimum(budget, self.steps)
        fixed_f = BoundFunction(f, args)
        z, spent, stagnated = z0, tf.zeros_like(budget), tf.zeros_like(budget, tf.bool)
        traces = []
        if most is None or most > self.steps:
            left = budget - recorded
            known = solver.max_steps if limits.max_steps is None else limits.max_steps
            known = tf.get_static_value(known)
            # A solve makes at least one evaluation; for samples without a remaining one it is
            # discarded here.
            own = left if known is None else np.asarray(known) - self.steps
            solution = iterate(
                fixed_f,
                z0,
                solver,
                **limits._replace(max_steps=_at_least_one(own))._asdict(),
                return_image=True,
                trace=settings.trace,
            )
            z = choose(left > 0, solution.z, z0)
            spent = tf.where(left > 0, solution.steps, 0)
            stagnated = (left > 0) & tf.equal(solution.status, int(Status.STAGNATED))
            traces.append(solution.trace)

        z = self._applied(f, z, args, recorded, most, layout)
        tolerance = solver.tolerance if limits.tolerance is None else limits.tolerance
        absolute = limits.absolute_tolerance
        check = iterate(
            fixed_f,
            z,
            FixedPointIteration(absolute_tolerance=solver.absolute_tolerance),
            tolerance,
            max_steps=1,
            absolute_tolerance=absolute,
        )
        missed = tf.equal(check.status, int(Status.MAX_STEPS))
        status = tf.where(missed & stagnated, int(Status.STAGNATED), check.status)
        steps = spent + recorded + check.steps
        trace = _trace(traces, steps, check.residual, most, budget) if settings.trace else ()
        return Solution(z, check.residual, steps, status, trace=trace)

    def _applied(self, f, z, args, recorded, most, layout):
        """Returns z after the given number of recorded applications of f for each sample, [B] int32."""
        apply = _checkpointed(f) if self.checkpointed else f
        for k in range(self.steps if most is None else min(self.steps, most)):
            image = apply(z, *args)
            layout.check_output(image)
            finite = tf.reduce_all(tf.math.is_finite(layout.flatten(image)), axis=1)
            z = choose((k < recorded) & finite, image, z)
        return z


def _trace(
    solved: list[tf.Tensor],
    steps: tf.Tensor,
    residual: tf.Tensor,
    most: int | None,
    budget: tf.Tensor,
) -> tf.Tensor:
    """Returns [B, max_steps + 1]: the trace of the solve, if there was one, and the result's residual."""
    columns = (tf.reduce_max(budget) if most is None else most) + 1
    trace = tf.fill([tf.shape(steps)[0], columns], float("nan"))
    for part in solved:
        # f is also applied to samples that have converged; the columns of their solve are kept.
        missing = columns - tf.shape(part)[1]
        trace = tf.pad(part, [[0, 0], [0, missing]], constant_values=float("nan"))
    last = tf.equal(tf.range(columns)[None], steps[:, None] - 1)
    return tf.where(last, residual[:, None], trace)


def _at_least_one(most: Any) -> Any:
    return tf.maximum(most, 1) if tf.is_tensor(most) else np.maximum(most, 1)


def _checkpointed(f: Callable[..., Any]) -> Callable[..., Any]:
    """Returns f with a gradient that keeps only (z, *args) and evaluates f again.

    It can be differentiated any number of times. (tf.recompute_grad has only first derivatives.)
    """

    def apply(z, *args):
        size = len(tf.nest.flatten(z))

        def unpack(inputs):
            packed = tf.nest.pack_sequence_as(z, list(inputs[:size]))
            return packed, with_floating_leaves(args, inputs[size:])

        def evaluate(*inputs):
            # No intermediate may be recorded here, because it would stay in memory.
            fixed_z, fixed_args = unpack([tf.stop_gradient(leaf) for leaf in inputs])

            def gradient(_, *cotangents):
                own_z, own_args = unpack(inputs)
                own_z = tf.nest.map_structure(lambda leaf: _after(cotangents[0], leaf), own_z)
                d_z, d_args = vector_jacobian_product(
                    f,
                    own_z,
                    own_args,
                    tf.nest.pack_sequence_as(z, list(cotangents)),
                    lambda z, args: (z, floating_leaves(args)),
                )
                return [*tf.nest.flatten(d_z), *d_args]

            with tf.GradientTape() as tape:
                output = f(fixed_z, *fixed_args)
            check_variables(tape.watched_variables())
            return tf.nest.flatten(output), gradient

        outputs = differentiated(evaluate, [*tf.nest.flatten(z), *floating_leaves(args)])
        return tf.nest.pack_sequence_as(z, outputs)

    return apply


def _after(cotangent: tf.Tensor, leaf: tf.Tensor) -> tf.Tensor:
    """Returns leaf; a graph computes it only after cotangent.

    Otherwise a compiler sees the same computation twice and keeps the intermediates of the first. XLA
    ignores control dependencies, but it must wait for a sum that it cannot prove to be zero.
    """
    if tf.executing_eagerly():
        return leaf
    entry = tf.reduce_max(tf.reshape(cotangent, [-1])[:1])
    flag = tf.cast(entry, tf.bool)
    zero = tf.where(tf.equal(flag, flag), 0.0, float("nan"))
    return leaf + tf.cast(zero, leaf.dtype)
