"""The one tf.while_loop: evaluates f, counts, freezes and stops each sample on its own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfdeq.compaction import BoundFunction, can_shrink, run_compacting
from tfdeq.solution import Solution, Status
from tfdeq.solvers.solver import Solver

_RUNNING = -1
# A sample has stagnated when its best residual fell by less than 0.1 % over this many iterates.
STAGNATION_STEPS = 12
_STAGNATION_FACTOR = 0.999
# Accelerated steps of a safeguarded sample must lower the residual by this factor, in so many steps.
_SAFEGUARD_DECREASE = 0.9
_SAFEGUARD_PATIENCE = 6
# Keeps 0 / 0 at 0 where a state and its image vanish; far below any residual that matters.
_TINY = 1e-20


class StateLayout:
    """How a nest of [B, ...] tensors lies in one [B, D] matrix of the solver's dtype.

    The matrix is float64 if any leaf is, else float32: half precision is the cell's business, never
    the solver's.

    Args:
        z: the nest. any_batch: whether matrices of another number of rows come to be unflattened.

    Raises:
        TypeError: for a leaf that is not floating point.
        ValueError: for a leaf without a batch dimension, or an empty nest.
    """

    def __init__(self, z: Any, any_batch: bool = False):
        leaves = [tf.convert_to_tensor(leaf) for leaf in tf.nest.flatten(z)]
        if not leaves:
            raise ValueError(f"z0 must hold at least one tensor; received {z!r}.")
        for leaf in leaves:
            if not leaf.dtype.is_floating:
                raise TypeError(f"z0 must be of a floating dtype; received {leaf.dtype.name}.")
            if leaf.shape.rank == 0:
                raise ValueError(
                    "z0 must have the batch in dimension 0: [B, ...]; received a scalar. "
                    "Add a dimension of size 1 for a single sample."
                )
        self._structure = z
        self._dtypes = [leaf.dtype for leaf in leaves]
        self._static_shapes = [
            tf.TensorShape([None, *leaf.shape[1:]]) if any_batch else leaf.shape for leaf in leaves
        ]
        self._tails = [_tail_shape(leaf) for leaf in leaves]
        self._sizes = [_product(tail) for tail in self._tails]
        wide = any(dtype == tf.float64 for dtype in self._dtypes)
        self.dtype = tf.float64 if wide else tf.float32

    def flatten(self, z: Any) -> tf.Tensor:
        """Nest of [B, ...] -> [B, D]."""
        parts = [
            tf.reshape(tf.cast(leaf, self.dtype), tf.stack([tf.shape(leaf)[0], size]))
            for leaf, size in zip(tf.nest.flatten(z), self._sizes, strict=True)
        ]
        return parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)

    def unflatten(self, matrix: tf.Tensor) -> Any:
        """[B, D] -> nest of [B, ...] in the original dtypes."""
        parts = [matrix] if len(self._sizes) == 1 else tf.split(matrix, self._sizes, axis=1)
        leaves = []
        for part, tail, dtype, shape in zip(
            parts, self._tails, self._dtypes, self._static_shapes, strict=True
        ):
            leaf = tf.reshape(part, tf.concat([tf.shape(matrix)[:1], tail], axis=0))
            leaf.set_shape(shape)
            leaves.append(tf.cast(leaf, dtype))
        return tf.nest.pack_sequence_as(self._structure, leaves)

    def check_output(self, output: Any) -> None:
        """Raises a ValueError unless f's output has z's structure, shapes and dtypes."""
        expected = [
            f"{shape} {dtype.name}"
            for shape, dtype in zip(self._static_shapes, self._dtypes, strict=True)
        ]
        try:
            tf.nest.assert_same_structure(self._structure, output)
            leaves = [tf.convert_to_tensor(leaf) for leaf in tf.nest.flatten(output)]
            received = [f"{leaf.shape} {leaf.dtype.name}" for leaf in leaves]
            fits = all(
                leaf.shape.is_compatible_with(shape) and leaf.dtype == dtype
                for leaf, shape, dtype in zip(
                    leaves, self._static_shapes, self._dtypes, strict=True
                )
            )
        except (TypeError, ValueError):
            fits, received = False, [repr(output)]
        if not fits:
            raise ValueError(
                "f(z, *args) must return the structure, shapes and dtypes of z. "
                f"z: {', '.join(expected)}; f returned: {', '.join(received)}. "
                "Change f's last operation, or start from a z0 like f's output."
            )


class _Base(NamedTuple):
    """Where a safeguarded solve returns to: the iterate that its accelerated steps started from."""

    z: tf.Tensor  # [B, D]
    f_z: tf.Tensor  # [B, D]
    residual: tf.Tensor  # [B]
    idle: tf.Tensor  # [B] int32, accelerated iterates since then, none of them enough better
    plain: tf.Tensor  # [B] int32, plain steps still to be made
    streak: tf.Tensor  # [B] int32, plain steps to make after the next refusal
    goal: tf.Tensor  # [B] the residual below which that falls to one again


class _LoopState(NamedTuple):
    k: tf.Tensor  # [] int32, iterates evaluated in the loop
    z: tf.Tensor  # [B, D] the iterate to evaluate next
    best_z: tf.Tensor  # [B, D] the iterate of the lowest residual so far, or its image
    best_residual: tf.Tensor  # [B] its residual; the dtype's largest number before the first one
    mark_residual: tf.Tensor  # [B] best residual when it last fell by more than 0.1 %
    mark_step: tf.Tensor  # [B] int32, the number of the iterate at which that was
    steps: tf.Tensor  # [B] int32, evaluations spent on the sample
    status: tf.Tensor  # [B] int32, a Status, or _RUNNING
    base: Any  # a _Base; () for a solver without safeguard
    solver: Any  # the method's own state


def iterate(
    f: Callable[[Any], Any],
    z0: Any,
    solver: Solver,
    tolerance: Any = None,
    max_steps: Any = None,
    return_image: bool = False,
    linear_part: Callable[[Any], Any] | None = None,
    return_state: bool = False,
) -> Any:
    """Finds z = f(z) for each sample; nothing here carries a gradient.

    Each sample stops on its own: its iterate is frozen from then on, and neither its residual nor a
    NaN in it reaches another sample. Runs in eager mode, in tf.function and under XLA.

    Args:
        f: z -> like z, sample by sample (rows of the batch must not mix). A `BoundFunction` with
            rows: outside of XLA, samples that are done leave the batch, so that the cost follows
            the work; the answers are the same, up to the rounding of another batch size.
        z0: nest of [B, ...] floating tensors.
        solver: the method; its tolerance and max_steps hold where the next two are None.
        tolerance: scalar or [B], relative residual; a Python number must be > 0.
        max_steps: scalar or [B] integers, evaluations; a Python number must be >= 1. One
            evaluation is always made.
        return_image: return f of the best iterate instead of that iterate; the residual is still the
            iterate's. For a contraction that is one step nearer, and it costs nothing.
        linear_part: for an affine f, v -> f(v) − f(0), which a solver that asks for products with the
            Jacobian then uses; else they come from a linearisation of f at the iterate.
        return_state: return also the solver's state, that of each sample as its last evaluation left
            it. Keeping it apart costs a pass over the state in each step.

    Returns:
        A `Solution` whose z carries no gradient; with return_state, that and the solver's state.

    Raises:
        ValueError: if f's output is unlike z, or tolerance or max_steps are out of range.
    """
    z0 = tf.nest.map_structure(tf.convert_to_tensor, z0)
    shrinks = isinstance(f, BoundFunction) and f.has_rows and not return_state and can_shrink()
    layout = StateLayout(z0, any_batch=shrinks)
    z = tf.stop_gradient(layout.flatten(z0))
    batch = tf.shape(z)[:1]
    budget = solver.max_steps if max_steps is None else tf.get_static_value(max_steps)
    tolerance = _per_sample("tolerance", tolerance, solver.tolerance, batch, z.dtype)
    max_steps = _per_sample("max_steps", max_steps, solver.max_steps, batch, tf.int32)
    step = _Step(solver, layout, return_image, return_state, linear_part)

    largest = tf.fill(batch, z.dtype.max)
    zeros = tf.zeros(batch, tf.int32)
    start = _LoopState(
        k=tf.constant(0),
        z=z,
        best_z=z,
        best_residual=largest,
        mark_residual=largest,
        mark_step=zeros,
        steps=zeros,
        status=tf.fill(batch, _RUNNING),
        base=()
        if solver.safeguard is None
        else _Base(z, z, largest, zeros, zeros, zeros + 1, largest),
        solver=solver.initial_state(z, None if budget is None else int(np.max(budget))),
    )
    if shrinks:
        best_z, best_residual, steps, status = run_compacting(
            lambda f, carried: (_run(step, f, *carried, share=0.5), *carried[1:]),
            f,
            (start, tolerance, max_steps),
            lambda carried: _running(carried[0]),
            lambda carried: _results(carried[0]),
        )
    else:
        end = _run(step, f, start, tolerance, max_steps)
        best_z, best_residual, steps, status = _results(end)
    residual = tf.cast(tf.minimum(best_residual, tf.cast(tf.float32.max, z.dtype)), tf.float32)
    solution = Solution(layout.unflatten(best_z), residual, steps, status)
    result = (solution, end.solver) if return_state else solution
    return tf.nest.map_structure(tf.stop_gradient, result)


class _Step(NamedTuple):
    """What every turn of the loop needs to know."""

    solver: Solver
    layout: StateLayout
    return_image: bool
    return_state: bool
    linear_part: Callable[[Any], Any] | None


def _run(
    step: _Step,
    f: Callable[[Any], Any],
    start: _LoopState,
    tolerance: tf.Tensor,
    max_steps: tf.Tensor,
    share: float = 0.0,
) -> _LoopState:
    """The loop, until at most this share of the samples is running."""

    def goes_on(*fields: Any) -> tf.Tensor:
        running = tf.reduce_sum(tf.cast(_running(_LoopState(*fields)), tf.float32))
        return running > share * tf.cast(tf.size(tolerance), tf.float32)

    def body(*fields: Any) -> _LoopState:
        return _turn(step, f, _LoopState(*fields), tolerance, max_steps)

    return _LoopState(*tf.while_loop(goes_on, body, list(start), parallel_iterations=1))


def _running(state: _LoopState) -> tf.Tensor:
    return tf.equal(state.status, _RUNNING)


def _results(state: _LoopState) -> tuple[tf.Tensor, ...]:
    return state.best_z, state.best_residual, state.steps, state.status


def _turn(
    step: _Step,
    f: Callable[[Any], Any],
    state: _LoopState,
    tolerance: tf.Tensor,
    max_steps: tf.Tensor,
) -> _LoopState:
    """One evaluation of f, its booking, and the solver's step to the next iterate."""
    solver, layout = step.solver, step.layout
    before = state
    if solver.uses_products and step.linear_part is None:
        f_z, product = _evaluate_linearised(f, layout, state.z)
    else:
        f_z = _evaluate(f, layout, state.z)
        product = lambda v: layout.flatten(step.linear_part(layout.unflatten(v)))  # noqa: E731
    kept = f_z if step.return_image else state.z
    residual = relative_residual(state.z, f_z)
    state = _account(state, kept, residual, tolerance, max_steps, solver.recovers)
    z = state.z
    if solver.safeguard is not None:
        state, z, f_z = _safeguard(state, f_z, residual, solver)
    running = _running(state)
    if solver.uses_products:
        # One evaluation is left for the point that the products lead to.
        allowed = tf.where(running, max_steps - state.steps - 1, 0)
        solver_state, next_z, spent = solver.step_with_products(
            state.solver, state.k, z, f_z, product, running, allowed, tolerance
        )
        state = state._replace(steps=state.steps + tf.where(running, spent, 0))
    else:
        solver_state, next_z = solver.step(state.solver, state.k, z, f_z)
    if step.return_state:
        solver_state = _where_running(before.status, solver_state, before.solver)
    next_z = tf.where(running[:, None], next_z, state.z)
    next_z.set_shape(z.shape)
    return state._replace(k=state.k + 1, z=next_z, solver=solver_state)


def relative_residual(z: tf.Tensor, f_z: tf.Tensor) -> tf.Tensor:
    """‖f(z) − z‖₂ / (‖f(z)‖₂ + ε) per sample; [B, D], [B, D] -> [B]."""
    return tf.norm(f_z - z, axis=1) / (tf.norm(f_z, axis=1) + tf.cast(_TINY, z.dtype))


def _account(
    state: _LoopState,
    kept: tf.Tensor,
    residual: tf.Tensor,
    tolerance: tf.Tensor,
    max_steps: tf.Tensor,
    recovers: bool,
) -> _LoopState:
    """Books one evaluation: counts it, keeps it if it is the best, ends samples that are done."""
    running = tf.equal(state.status, _RUNNING)
    steps = state.steps + tf.cast(running, tf.int32)
    finite = tf.math.is_finite(residual)
    better = running & finite & (residual < state.best_residual)
    best_residual = tf.where(better, residual, state.best_residual)
    best_z = tf.where(better[:, None], kept, state.best_z)
    factor = tf.cast(_STAGNATION_FACTOR, residual.dtype)
    progress = best_residual < factor * state.mark_residual
    # Iterates, not evaluations: products with the Jacobian are work that shows at the next iterate.
    mark_step = tf.where(progress, state.k, state.mark_step)
    mark_residual = tf.where(progress, best_residual, state.mark_residual)

    # The later line wins: a sample that converges with its last evaluation has converged.
    status = tf.fill(tf.shape(steps), _RUNNING)
    # What goes back and tries again takes longer: until the plain streaks, 1, 2, 4, …, have become
    # longer than a plain iteration's patience, with the refused attempts in between.
    patience = 8 * STAGNATION_STEPS if recovers else STAGNATION_STEPS
    stagnated = state.k - mark_step >= patience
    status = tf.where(stagnated, int(Status.STAGNATED), status)
    status = tf.where(steps >= max_steps, int(Status.MAX_STEPS), status)
    # A method that goes back from NaN may try, unless there is nothing to go back to.
    hopeless = (stagnated | (state.k == 0)) if recovers else tf.constant(True)
    status = tf.where(finite | tf.logical_not(hopeless), status, int(Status.NON_FINITE))
    status = tf.where(finite & (residual <= tolerance), int(Status.CONVERGED), status)
    return state._replace(
        best_z=best_z,
        best_residual=best_residual,
        mark_residual=mark_residual,
        mark_step=mark_step,
        steps=steps,
        status=tf.where(running, status, state.status),
    )


def _safeguard(
    state: _LoopState, f_z: tf.Tensor, residual: tf.Tensor, solver: Solver
) -> tuple[_LoopState, tf.Tensor, tf.Tensor]:
    """Sends samples whose accelerated steps lead nowhere back to where those started.

    From there they make plain steps, twice as many after each refusal in a row, which are accepted
    whatever their residual: the accepted iterates then are the whole plain iteration, whatever way
    that takes.
    """
    base = state.base
    plain_step = base.plain > 0
    decrease = tf.constant(_SAFEGUARD_DECREASE, residual.dtype)
    improved = residual < decrease * base.residual
    accepted = (plain_step & tf.math.is_finite(residual)) | improved
    idle = tf.where(accepted, 0, base.idle + 1)
    limit = tf.constant(solver.safeguard, residual.dtype) * base.residual
    # NaN is within no limit.
    hopeless = tf.logical_not(residual <= limit) | (idle >= _SAFEGUARD_PATIENCE)
    refused = hopeless & tf.logical_not(accepted)

    base_z = tf.where(accepted[:, None], state.z, base.z)
    base_f_z = tf.where(accepted[:, None], f_z, base.f_z)
    z = tf.where(refused[:, None], base_z, state.z)
    f_z = tf.where(refused[:, None], base_f_z, f_z)
    plain = tf.where(refused, base.streak, tf.maximum(base.plain - 1, 0))
    # Only a best residual ever counts as success: what plain steps raised and others lowered does not.
    calm = tf.where(residual < base.goal, 1, base.streak)
    goal = tf.minimum(base.goal, decrease * residual)
    base = _Base(
        z=base_z,
        f_z=base_f_z,
        residual=tf.where(accepted, residual, base.residual),
        idle=tf.where(refused, 0, idle),
        plain=plain,
        streak=tf.where(refused, 2 * base.streak, calm),
        goal=tf.where(tf.math.is_finite(residual), goal, base.goal),
    )
    # What has been learned is forgotten before each plain step: the next step then is one.
    solver_state = solver.restart(state.solver, plain > 0)
    return state._replace(base=base, solver=solver_state), z, f_z


def _evaluate(f: Callable[[Any], Any], layout: StateLayout, z: tf.Tensor) -> tf.Tensor:
    """f at z, [B, D] -> [B, D], without a gradient."""
    # The tape records nothing that is used; it tells which variables f read.
    with tf.GradientTape() as tape:
        output = f(layout.unflatten(z))
    _check_variables(tape.watched_variables())
    layout.check_output(output)
    result = tf.stop_gradient(layout.flatten(output))
    result.set_shape(z.shape)
    return result


def _evaluate_linearised(
    f: Callable[[Any], Any], layout: StateLayout, z: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """f at z and v -> ∂f/∂z v there, both [B, D].

    u -> Jᵀu is linear, so its own gradient is v -> Jv: two reverse passes make a forward one, and f is
    evaluated once for all products.
    """
    u = tf.zeros_like(z)
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(u)
        with tf.GradientTape(watch_accessed_variables=False) as inner:
            inner.watch(z)
            output = f(layout.unflatten(z))
            layout.check_output(output)
            result = layout.flatten(output)
        transposed = inner.gradient(
            result, z, output_gradients=u, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
    _check_variables(outer.watched_variables())

    def product(v: tf.Tensor) -> tf.Tensor:
        return outer.gradient(
            transposed, u, output_gradients=v, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )

    result = tf.stop_gradient(result)
    result.set_shape(z.shape)
    return result, product


def _where_running(status: tf.Tensor, new: Any, old: Any) -> Any:
    """The new solver state for samples that were running, the old one for the others."""
    running = tf.equal(status, _RUNNING)

    def choose(new, old):
        if new.shape.rank == 0:  # a count that all samples share
            return new
        shape = tf.concat([tf.shape(running), tf.ones([tf.rank(new) - 1], tf.int32)], axis=0)
        return tf.where(tf.reshape(running, shape), new, old)

    return tf.nest.map_structure(choose, new, old)


def _tail_shape(leaf: tf.Tensor) -> list[int] | tf.Tensor:
    """The shape behind the batch dimension: static where it is known."""
    tail = leaf.shape[1:]
    return tail.as_list() if tail.is_fully_defined() else tf.shape(leaf)[1:]


def _product(tail: list[int] | tf.Tensor) -> int | tf.Tensor:
    if isinstance(tail, tf.Tensor):
        return tf.reduce_prod(tail)
    size = 1
    for extent in tail:
        size *= extent
    return size


def _per_sample(
    name: str, value: Any, default: Any, batch: tf.Tensor, dtype: tf.DType
) -> tf.Tensor:
    """Returns value, or the default, as [B]; checks what is known before the loop runs."""
    value = default if value is None else value
    if not tf.is_tensor(value):
        array = np.asarray(value)
        if dtype.is_integer and not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{name} must be of integers; received {value!r}.")
        value = tf.constant(array, dtype)
    tensor = tf.cast(value, dtype)
    known = tf.get_static_value(tensor)
    if known is not None and known.size:
        bound = "at least 1" if dtype.is_integer else "greater than 0"
        valid = (known >= 1).all() if dtype.is_integer else (known > 0).all()
        if not valid:
            raise ValueError(f"{name} must be {bound} for every sample; received {known}.")
    size = tf.get_static_value(batch)
    fits = tensor.shape.rank in (0, None) or (
        tensor.shape.rank == 1 and (size is None or tensor.shape[0] in (1, None, size[0]))
    )
    if not fits:
        expected = "[B]" if size is None else f"[{size[0]}]"
        raise ValueError(
            f"{name} must be a scalar or of shape {expected}, one for each sample; received shape "
            f"{tensor.shape}."
        )
    return tf.stop_gradient(tf.broadcast_to(tensor, batch))


def _check_variables(variables: tuple[tf.Variable, ...]) -> None:
    if variables:
        names = ", ".join(sorted(variable.name for variable in variables))
        raise ValueError(
            f"f reads trainable variables that are not in args ({names}): no gradient would reach "
            "them. Pass them, f(z, *args), through args; or, where no gradient is wanted, pass "
            "tf.stop_gradient of them."
        )
