"""`DEQLayer`: the equilibrium of any Keras cell, as a Keras layer."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdeq import adjoints, solvers
from tfdeq.cell_calls import batch_part
from tfdeq.cell_calls.block_call import BlockCall
from tfdeq.cell_calls.call_limits import (
    call_limits,
    checked_training_steps,
    drawn_training_steps,
)
from tfdeq.cell_calls.cell_layer import CellLayer
from tfdeq.cell_calls.convergence_metrics import ConvergenceMetrics, in_evaluation
from tfdeq.cell_calls.explicit import apply_explicitly
from tfdeq.cell_calls.masks import attach_masks
from tfdeq.cell_calls.scoped_call import ScopedCall
from tfdeq.fixed_point import fixed_point, mark_non_finite
from tfdeq.numerics.limits import Limits
from tfdeq.rows import finite_rows, rows_of, without_rows
from tfdeq.solution import Solution
from tfdeq.solvers.solver import require_integer
from tfdeq.steadiness.layer_penalty import LayerPenalty
from tfdeq.steadiness.training_control import TrainingControl


@keras.saving.register_keras_serializable(package="tfdeq")
class DEQLayer(CellLayer):
    """The equilibrium z* = cell(z*, x) of a weight-tied cell.

    The cell is an ordinary Keras layer or model: its weights, Dropout (one mask for the whole
    solve), BatchNormalization (batch statistics in training), seed generators and dtype policy work
    as in any Keras model. Side effects of the cell take place once per call, at the equilibrium, in
    training and in inference. These are the variables that it assigns (moving statistics, the seeds
    of its random numbers, the state of a stateful recurrent layer, the kernel of
    SpectralNormalization) and the losses that it adds (add_loss, activity_regularizer). The
    gradient of such a loss reaches z*, x and the weights. Random numbers that do not come from
    Keras's seed generators are new in every evaluation. The layers in the cell receive the mask of
    x. The equilibrium carries the mask that they set on it; see also `compute_mask`. The state of
    the solve is float32 (float64 under a float64 policy), even if the cell computes in half
    precision. Rows of a batch do not influence one another, unless the cell mixes them, as
    BatchNormalization does in training. Gradients flow to the weights and x, but not to z0.

    In `fit` and `evaluate` the logs show, after the name of each layer: `_steps`, `_residual` and
    `_converged` (mean evaluations, mean relative residual, share of samples that met the
    tolerance), and the same for the backward solve as `_backward_steps`, `_backward_residual`,
    `_backward_converged`.

    Args:
        cell: a layer with call(z, x, ...) -> like z, or a functional model with the inputs [z, x].
            If x is a nest, its tensors are separate inputs in order; with n outputs, the first n
            inputs are z. A functional model starts from zeros like its z, with unknown sizes taken
            from x. If the cell has a method initial_state(x) -> z0, the solve starts from its
            result (the method must not create weights); otherwise it starts from zeros like x. If
            the cell has a method inject(x), it is called once before the solve, and call(z, x)
            receives its result as x: use it for work that is the same in every step. The leaves of
            the result are [B, ...], or [1, ...] for values that all samples share.
        solver: solver or its name. Default "broyden".
        adjoint: adjoint or its name. Default "implicit".
        jacobian_penalty: weight of ‖∂f/∂z‖²_F / D in the loss, >= 0 (see
            `tfdeq.jacobian_penalty`); 0.1 to 1 keeps long training stable. Default 0: none. "auto":
            0.1 plus 10 times the mean residual of the batch, with at least 2 power steps. While that
            residual is above 0.1, no gradient reaches the cell and x through z, so only the
            penalty trains the cell until it has equilibria again.
        jacobian_penalty_fraction: share of the batch on which the penalty is estimated, in (0, 1]:
            evenly spaced rows, starting at a row that the layer's seed generator draws in each
            call. Dropout masks and batch statistics are those of these rows. Default 0.25.
        jacobian_penalty_power_steps: power iterations on the penalty's noise, >= 0 (see
            `tfdeq.jacobian_penalty`). Default 0.
        training_max_steps: largest number of evaluations in training, if a call does not set one: a
            number, or a pair (lowest, highest). From a pair, each call draws one number uniformly, the same
            for all samples, so that the model does not rely on one budget. At most the
            solver's max_steps. Default None: the solver's.
        convergence_metrics: whether to keep the metrics named above. Default True.
        exclude_non_finite: whether to exclude samples whose x has NaN or infinity from every
            gradient. Their equilibrium is the start and their status NON_FINITE, so it is enough if
            the loss masks them. Default False: their NaN reaches the gradients.
        block: size, along each dimension, of blocks that are solved separately in inference. It is
            meant for plain iteration where an answer travels through many places, and needs a cell
            with the attribute `reach`, the distance that one application sees. Only blocks in which
            something still changes are computed; see `tfdeq.block_solve`. Such a call has no
            gradient. Calls that XLA compiles, calls that ask for iterates or a trace, and calls in
            a `SolveScope` without compaction solve as usual. Default None: all places at once.
        explicit_steps: if greater than 0, the cell is applied this many times instead of solving,
            as with the call argument of this name; a baseline of that depth. Default 0: solve.

    Call arguments:
        x: tensor or nest of tensors [B, ...].
        z0: the start, a nest like the state. Default None: the cell's `initial_state`, or zeros.
        tolerance, max_steps, patience, absolute_tolerance: scalar or [B], for this call; see
            `tfdeq.fixed_point`.
        backward_tolerance, backward_max_steps: the same for the backward solve.
        training: bool.
        return_solution: return the `Solution` instead of z. Its z has the solver's dtype, even if
            the layer's output is rounded to half precision, and the residual is that of this z.
        iterates: numbers of evaluations; with return_solution, the solution's `iterates` are the
            states after each of them, so that a loss can use them too.
        trace: with return_solution, the solution's `trace` has the residual of every iterate.
        throw: raise an error unless every sample has converged.
        explicit_steps: a number of plain applications from the start instead of a solve, with
            ordinary backpropagation through them (a weight-tied network of that depth). 0: a solve,
            even if the layer has its own explicit_steps.
        mask: the mask of x, if x carries none; a cell whose call takes a mask receives it.

    Raises:
        ValueError: at construction for invalid settings or a cell with only one input; at build for
            a cell whose output is unlike z; in a call, if neither the cell, x nor z0 determines the
            size of the state.

    Source: Bai, Kolter, Koltun, Deep Equilibrium Models, arXiv:1909.01377.

    Example:
        >>> class Cell(keras.layers.Layer):
        ...     def __init__(self, units, **kwargs):
        ...         super().__init__(**kwargs)
        ...         self.dense = keras.layers.Dense(units, kernel_initializer="zeros")
        ...     def call(self, z, x):
        ...         return keras.ops.tanh(self.dense(z) + x)
        >>> layer = DEQLayer(Cell(3))
        >>> layer(tf.zeros([2, 3])).shape
        TensorShape([2, 3])
    """

    def __init__(
        self,
        cell: keras.layers.Layer,
        solver: str | solvers.Solver = "broyden",
        adjoint: str | adjoints.Adjoint = "implicit",
        jacobian_penalty: float | str = 0.0,
        jacobian_penalty_fraction: float = 0.25,
        jacobian_penalty_power_steps: int = 0,
        training_max_steps: int | Sequence[int] | None = None,
        convergence_metrics: bool = True,
        exclude_non_finite: bool = False,
        explicit_steps: int = 0,
        block: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(cell, **kwargs)
        self._penalty = LayerPenalty(
            jacobian_penalty, jacobian_penalty_fraction, jacobian_penalty_power_steps
        )
        self.solver = solvers.get(solver)
        self.adjoint = adjoints.get(adjoint)
        self.jacobian_penalty = self._penalty.weight
        self.jacobian_penalty_fraction = self._penalty.fraction
        self.jacobian_penalty_power_steps = int(jacobian_penalty_power_steps)
        # A layer that was made without a penalty has one as soon as a callback raises the scale.
        self.training_control = TrainingControl(1.0 if self.jacobian_penalty else 0.0)
        self.training_max_steps = checked_training_steps(training_max_steps, self.solver.max_steps)
        self.convergence_metrics = bool(convergence_metrics)
        self.exclude_non_finite = bool(exclude_non_finite)
        require_integer("explicit_steps", explicit_steps, lowest=0)
        self.explicit_steps = explicit_steps
        self.block = block
        self._block_call = None if block is None else BlockCall(cell, self.solver, block)
        self._seed_generator = None
        if self.jacobian_penalty or isinstance(self.training_max_steps, tuple):
            self._seed_generator = keras.random.SeedGenerator()
        self._forward_metrics = self._backward_metrics = None
        if self.convergence_metrics:
            self._forward_metrics = ConvergenceMetrics(self.name)
            self._backward_metrics = ConvergenceMetrics(f"{self.name}_backward")
            self._convergence = [*self._forward_metrics.all(), *self._backward_metrics.all()]

    def call(
        self,
        x,
        z0=None,
        tolerance=None,
        max_steps=None,
        training=None,
        return_solution=False,
        explicit_steps=None,
        iterates=None,
        mask=None,
        x_mask=None,
        patience=None,
        absolute_tolerance=None,
        backward_tolerance=None,
        backward_max_steps=None,
        trace=False,
        throw=False,
    ):
        training = bool(training)
        scoped = ScopedCall(self.name)
        explicit_steps = scoped.explicit_steps(explicit_steps, self.explicit_steps)
        _check_what_is_asked(return_solution, explicit_steps, iterates, trace, throw)
        # If further arguments are tensors, Keras passes the mask of x under this name.
        mask = _given_mask(x_mask if mask is None else mask)
        finite, x = self._finite(x)
        x = attach_masks(x, mask)
        injected = self._pure_cell.inject(x)
        f = self._pure_cell.function(training, mask, injected)
        usual = self._usual_start(x, z0)
        z0 = scoped.start(z0, usual, lambda z0: self._given_start(z0, usual))
        if not explicit_steps:
            given = Limits(tolerance, max_steps, patience, absolute_tolerance)
            own = self._own_budget(given, trace) if training else None
            limits = call_limits(scoped, self.solver, z0, given, own, trace)
            solution = self._solve(
                f,
                z0,
                injected,
                scoped,
                training,
                limits,
                mask,
                backward_tolerance=backward_tolerance,
                backward_max_steps=backward_max_steps,
                iterates=iterates,
                trace=trace,
                throw=throw,
            )
        else:
            solution = self._apply_explicitly(f, z0, injected, explicit_steps, training)
        if finite is not None:
            solution = mark_non_finite(solution, finite, z0)
        if not explicit_steps and (training or in_evaluation()) and self._forward_metrics:
            self._forward_metrics(solution)
        if training:
            solution = self._penalized(f, injected, solution, solved=not explicit_steps)
        masks = self._finish(f, solution.z, injected)
        scoped.record(solution)
        if not return_solution:
            return self._as_output(solution.z, masks)
        return solution._replace(
            z=attach_masks(solution.z, masks),
            iterates=[attach_masks(state, masks) for state in solution.iterates] or (),
        )

    def _finite(self, x: Any) -> tuple[tf.Tensor | None, Any]:
        """Returns [B] bool, which samples are finite, and x without the others; None if not checked."""
        if not self.exclude_non_finite:
            return None, x
        finite = finite_rows(x, rows_of(keras.tree.flatten(x)[0]))
        return finite, (x if finite is None else without_rows(x, finite))

    def _own_budget(self, given: Limits, trace: bool) -> int | tf.Tensor | None:
        """Returns the layer's budget for a training call that sets none; None: the solver's."""
        if given.max_steps is not None:
            return None
        own = drawn_training_steps(self.training_max_steps, self._next_seed)
        # The layer's own setting determines the length of a trace; a callback does not change it.
        return own if trace else self.training_control.budget(own, self.solver.max_steps)

    def _solve(self, f, z0, x, scoped, training, limits, mask, **settings) -> Solution:
        """Solves for one call; settings are further arguments of `fixed_point`."""
        backward_callback = self._backward_callback(training, scoped)
        compact = not training and scoped.compaction
        by_blocks = self._block_call is not None and self._block_call.fits(
            compact, settings["iterates"], settings["trace"]
        )

        def solve(compaction):
            if by_blocks:
                return self._block_call.solve(self._pure_cell, z0, x, mask, limits)
            args = f.arguments(x)
            return fixed_point(
                f,
                z0,
                args,
                self.solver,
                self.adjoint,
                **limits._asdict(),
                **settings,
                # Masks leave the batch with their samples.
                batched_args=[0, 2][: len(args) - 1],
                compaction=compaction,
                backward_callback=backward_callback,
            )

        # No compaction in training: a cell may draw noise or compute statistics for the whole
        # batch.
        return self._pure_cell.solve(f, z0, x, solve, compact)

    def _apply_explicitly(self, f, z0, x, steps, training) -> Solution:
        def apply(_):
            return apply_explicitly(f, z0, f.arguments(x), steps, unroll=training)

        return self._pure_cell.solve(f, z0, x, apply, compaction=False)

    def _penalized(self, f, x, solution: Solution, solved: bool) -> Solution:
        """Adds the penalty to the loss; returns the solution, with or without a gradient through z.

        solved: whether the solution comes from a solve.
        """
        penalty = self._penalty(
            f,
            (solution.z, x, f.theta, f.masks.leaves()),
            solution.residual,
            self.training_control,
            self._next_seed,
        )
        if penalty is not None:
            self.add_loss(penalty)
        return self._penalty.gated(solution, self.training_control) if solved else solution

    def _finish(self, f, z, x) -> tuple:
        """Applies the cell's side effects at the equilibrium; returns the masks of its output."""
        end = f.finish(z, x)
        for loss in end.losses:
            # In the solver's dtype, because fit cannot add a loss in half precision to its own.
            self.add_loss(self._pure_cell.as_state(loss))
        return end.masks

    def convergence_report(self) -> dict[str, float]:
        """Returns the means of the convergence metrics since the last report, and resets them.

        Names: steps, residual, converged, and the same with the prefix backward_. Metrics without a
        value (because there was no solve, or none with a gradient) are omitted.
        """
        report = {}
        if self.convergence_metrics:
            report.update(self._forward_metrics.report(""))
            report.update(self._backward_metrics.report("backward_"))
        return report

    def get_config(self):
        cell = keras.saving.serialize_keras_object(self.cell)
        cell.pop("build_config", None)  # build() builds the cell from x's shape
        return {
            **super().get_config(),
            "cell": cell,
            "solver": keras.saving.serialize_keras_object(self.solver),
            "adjoint": keras.saving.serialize_keras_object(self.adjoint),
            "jacobian_penalty": self.jacobian_penalty,
            "jacobian_penalty_fraction": self.jacobian_penalty_fraction,
            "jacobian_penalty_power_steps": self.jacobian_penalty_power_steps,
            "training_max_steps": self.training_max_steps,
            "convergence_metrics": self.convergence_metrics,
            "exclude_non_finite": self.exclude_non_finite,
            "explicit_steps": self.explicit_steps,
            "block": self.block,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in ("cell", "solver", "adjoint"):
            if isinstance(config[name], dict):
                config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)

    def _backward_callback(
        self, training: bool, scoped: ScopedCall
    ) -> Callable[[Solution], None] | None:
        """Returns a function that passes the backward solve's result to the metrics and the scope."""
        receivers = [self._backward_metrics] if training and self._backward_metrics else []
        recorder = scoped.backward_recorder()
        if recorder is not None:
            receivers.append(recorder)
        if len(receivers) < 2:
            return receivers[0] if receivers else None

        def both(solution: Solution) -> None:
            for receiver in receivers:
                receiver(solution)

        return both

    def _next_seed(self) -> tf.Tensor:
        """Returns [2] integers from the layer's generator, or those that all parts of a batch share."""
        part = batch_part.current()
        if part is not None:
            return part.next_seed()
        if self._seed_generator is None:  # a callback added a penalty to a layer without one
            return tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32)
        return self._seed_generator.next()


def _given_mask(mask: Any) -> Any:
    # Keras passes a nest of masks even if none of its tensors has a mask.
    return None if all(leaf is None for leaf in keras.tree.flatten(mask)) else mask


def _check_what_is_asked(return_solution, explicit_steps, iterates, trace, throw) -> None:
    if not return_solution and (iterates is not None or trace):
        raise ValueError(
            "iterates and trace are part of the Solution: call the layer with return_solution=True."
        )
    if explicit_steps and (iterates is not None or trace or throw):
        raise ValueError(
            "iterates, trace and throw are those of a solve: explicit_steps makes none."
        )
