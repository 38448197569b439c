"""Exact backpropagation through a reversible solve, with memory independent of its length."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import keras
import tensorflow as tf

from tfdeq.adjoints.adjoint import Adjoint, attach, floating_leaves, vector_jacobian_product
from tfdeq.compaction import BoundFunction, RowwiseFunction
from tfdeq.iteration import iterate
from tfdeq.numerics.custom_gradient import custom_gradient_only
from tfdeq.numerics.function_evaluation import residual_of
from tfdeq.numerics.state_layout import StateLayout
from tfdeq.solvers import Reversible, Solver

# How much one segment of the reversal may amplify rounding errors: those of float64 states with a
# float64 f, and those of a float32 f that a compiler may round differently than in the forward
# pass.
_AMPLIFICATION = {"float64": 1e6, "float32": 1e4}


@keras.saving.register_keras_serializable(package="tfdeq")
@dataclasses.dataclass(frozen=True)
class ReversibleBackprop(Adjoint):
    """Backpropagation through every step of a `Reversible` solve, which is reversed for the gradient.

    With a_k the cotangent of w_k, the step w_{k+1} = (1 − β) w_{k−1} + β f(w_k) gives
    w_{k−1} = (w_{k+1} − β f(w_k)) / (1 − β),
    a_k ← a_k + β Jᵀ(w_k) a_{k+1},   a_{k−1} ← (1 − β) a_{k+1},   d args ← d args + β a_{k+1}ᵀ ∂f/∂args.
    The gradient is exact for the iterations that led to the returned z, whose number may differ between
    samples, converged or not. The start z0 gets no gradient. First derivatives only.

    Memory: the start and the last two iterates, for any number of steps. The states are
    float64, whatever the dtype of z; f runs in its own dtype. The reversal amplifies rounding errors, for a
    contraction by up to 1/(1 − β) per evaluation. So after every L evaluations (5 in float32 and 8
    in float64 at β = 0.8) the exact states are computed again from z0. Time: for n evaluations,
    n evaluations with their vector–Jacobian products, and about n²/2L evaluations without.

    Raises:
        ValueError: at the call for a solver that is not `Reversible`; for a second derivative.

    Source: McCallum, Arora, Foster, Reversible Deep Equilibrium Models, arXiv:2509.12917; the restarts
        from z0 are an addition.

    Example:
        >>> x = tf.ones([1, 1])
        >>> with tf.GradientTape() as tape:
        ...     tape.watch(x)
        ...     solution = fixed_point(
        ...         lambda z, x: 0.5 * z + x, x, (x,), Reversible(60, 1e-6), ReversibleBackprop()
        ...     )
        >>> round(float(tape.gradient(solution.z, x)[0, 0]), 4)
        2.0
    """

    exact = True
    solver_kind = Reversible

    def solve(self, f, z0, args, settings):
        solver = self._require_whole_solve(settings)
        z0 = tf.nest.map_structure(lambda leaf: tf.stop_gradient(tf.convert_to_tensor(leaf)), z0)
        narrow = StateLayout(z0)
        start = tf.nest.map_structure(lambda leaf: tf.cast(leaf, tf.float64), z0)
        wide = StateLayout(start)
        begin = tf.stop_gradient(wide.flatten(start))

        def wide_f(z, *args):
            output = f(_cast_like(z, z0), *args)
            narrow.check_output(output)
            return tf.nest.map_structure(lambda leaf: tf.cast(leaf, tf.float64), output)

        def flat_f(w, *args):
            return wide.flatten(wide_f(wide.unflatten(w), *args))

        limits = settings.limits.resolved(solver, tf.shape(begin)[:1], tf.float64)
        rows = f.batched_args if isinstance(f, RowwiseFunction) else ()
        solution, trace = iterate(
            BoundFunction(RowwiseFunction(wide_f, rows, compaction=False), args),
            start,
            _Tracing(
                solver.max_steps,
                solver.tolerance,
                solver,
                limits.absolute_tolerance,
                patience=solver.patience,
                absolute_tolerance=solver.absolute_tolerance,
            ),
            **settings.limits._asdict(),
            trace=settings.trace,
            return_state=True,
        )
        segment = _segment(solver.relaxation, narrow.dtype)

        def pullback(_, args, d_z):
            return _once_differentiable(
                lambda args, d_z: _reverse(
                    flat_f, args, begin, trace, wide.flatten(d_z), solver.relaxation, segment
                ),
                args,
                d_z,
            )

        z = attach(_cast_like(solution.z, z0), args, pullback)
        return solution._replace(z=z)


class _Trace(NamedTuple):
    solver: Any  # the reversible solver's own state: [B, D] the previous iterate
    point: tf.Tensor  # [B, D] w_j, the iterate with the lowest residual so far
    before: tf.Tensor  # [B, D] w_{j−1}
    index: tf.Tensor  # [B] int32, j
    residual: tf.Tensor  # [B] of w_j


@dataclasses.dataclass(frozen=True)
class _Tracing(Solver):
    """A reversible solver that records which of its iterates is returned, and the iterate before it."""

    computes_squares: ClassVar[bool] = False

    solver: Reversible | None = None
    done: Any = 0.0  # [B] absolute tolerance, which also decides which iterate is returned

    def initial_state(self, z, max_steps=None):
        batch = tf.shape(z)[:1]
        state = self.solver.initial_state(z, max_steps)
        return _Trace(state, z, z, tf.zeros(batch, tf.int32), tf.fill(batch, z.dtype.max))

    def step(self, state, k, z, f_z):
        found = residual_of(z, f_z)
        residual = found.relative
        near = (found.distance <= self.done) & (tf.cast(self.done, z.dtype) > 0)
        better = (residual < state.residual) | near
        better &= tf.math.is_finite(residual)
        inner, next_z = self.solver.step(state.solver, k, z, f_z)
        trace = _Trace(
            inner,
            tf.where(better[:, None], z, state.point),
            tf.where(better[:, None], state.solver, state.before),
            tf.where(better, k, state.index),
            tf.where(better, residual, state.residual),
        )
        return trace, next_z


class _Reversal(NamedTuple):
    k: tf.Tensor  # [] int32, the index of `current`
    current: tf.Tensor  # [B, D] w_k
    before: tf.Tensor  # [B, D] w_{k−1}
    d_current: tf.Tensor  # [B, D] cotangent of w_k
    d_before: tf.Tensor  # [B, D] cotangent of w_{k−1}
    d_args: list[tf.Tensor]  # gradients so far, for the floating leaves of args


def _reverse(
    f: Callable[..., tf.Tensor],
    args: Any,
    start: tf.Tensor,
    trace: _Trace,
    d_z: tf.Tensor,
    beta: float,
    segment: int,
) -> list[tf.Tensor]:
    """Returns gradients for the floating leaves of args, by reversing w_index back to w_0."""
    top = tf.reduce_max(trace.index)
    segments = (top + segment - 1) // segment

    def one_segment(number, *fields):
        state = tf.nest.pack_sequence_as(initial, list(fields))
        low, high = number * segment, (number + 1) * segment
        # The last segment starts from the final states of the forward solve.
        count = tf.where(tf.equal(number, segments - 1), 0, high)
        current, before = _replay(f, args, start, trace.index, count, beta)
        behind = (trace.index > high)[:, None]
        state = state._replace(
            k=tf.minimum(high, top),
            current=tf.where(behind, current, state.current),
            before=tf.where(behind, before, state.before),
        )
        state = _reverse_to(low, f, args, state, trace.index, beta)
        return [number - 1, *tf.nest.flatten(state)]

    zeros = [tf.zeros_like(leaf) for leaf in floating_leaves(args)]
    initial = _Reversal(top, trace.point, trace.before, d_z, tf.zeros_like(d_z), zeros)
    end = tf.while_loop(
        lambda number, *_: number >= 0,
        one_segment,
        [segments - 1, *tf.nest.flatten(initial)],
        parallel_iterations=1,
    )
    return tf.nest.pack_sequence_as(initial, list(end[1:])).d_args


def _replay(f, args, start, index, count, beta):
    """Computes w_count and w_{count−1} again, for samples whose index is at least count."""

    def body(k, current, before):
        image = (1 - beta) * before + beta * f(current, *args)
        active = (k < index)[:, None]
        return k + 1, tf.where(active, image, current), tf.where(active, current, before)

    _, current, before = tf.while_loop(
        lambda k, *_: k < count,
        body,
        (tf.constant(0), start, start),
        parallel_iterations=1,
    )
    return current, before


def _reverse_to(low, f, args, state, index, beta):
    """Reverses the pair (w_k, w_{k−1}) and its cotangents back to k = low."""

    def body(*fields):
        state = tf.nest.pack_sequence_as(template, list(fields))
        active = (state.k <= index)[:, None]
        cotangent = tf.where(active, beta * state.d_current, 0.0)
        images = []

        def remembering_f(w, *args):
            images.append(f(w, *args))
            return images[0]

        product, d_args = vector_jacobian_product(
            remembering_f,
            state.before,
            args,
            cotangent,
            lambda w, args: (w, floating_leaves(args)),
        )
        earlier = (state.current - beta * images[0]) / (1 - beta)
        new = _Reversal(
            state.k - 1,
            tf.where(active, state.before, state.current),
            tf.where(active, earlier, state.before),
            tf.where(active, state.d_before + product, state.d_current),
            tf.where(active, (1 - beta) * state.d_current, state.d_before),
            [
                total + tf.convert_to_tensor(part)
                for total, part in zip(state.d_args, d_args, strict=True)
            ],
        )
        return tf.nest.flatten(new)

    template = state
    end = tf.while_loop(lambda k, *_: k > low, body, tf.nest.flatten(state), parallel_iterations=1)
    return tf.nest.pack_sequence_as(template, list(end))


def _once_differentiable(function: Callable[[Any, Any], list[tf.Tensor]], args: Any, d_z: Any):
    """Returns function(args, d_z); differentiating it raises an error, because no tape records a reversal."""
    leaves = tf.nest.flatten((args, d_z))

    def refuse(*_):
        raise ValueError(
            "ReversibleBackprop has first derivatives only. For higher derivatives use "
            "tfdeq.Implicit, or tfdeq.Unrolled to differentiate the iterations."
        )

    @tf.custom_gradient
    def compute(*inputs):
        fixed = [tf.stop_gradient(leaf) for leaf in inputs]
        found = function(*tf.nest.pack_sequence_as((args, d_z), fixed))
        return custom_gradient_only(found, inputs), refuse

    return tf.nest.flatten(compute(*leaves))


def _segment(beta: float, dtype: tf.DType) -> int:
    """Returns the number of evaluations that can be reversed before rounding errors grow too large."""
    return max(1, int(math.log(_AMPLIFICATION[dtype.name]) / -math.log(1 - beta)))


def _cast_like(z: Any, like: Any) -> Any:
    return tf.nest.map_structure(lambda leaf, other: tf.cast(leaf, other.dtype), z, like)
