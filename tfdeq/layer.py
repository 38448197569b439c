"""`DEQLayer`: the equilibrium of any Keras cell, as a Keras layer."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdeq import adjoints, solvers
from tfdeq.cell_calls import batch_part
from tfdeq.cell_calls.convergence_metrics import ConvergenceMetrics, in_evaluation
from tfdeq.cell_calls.explicit import apply_explicitly
from tfdeq.cell_calls.functional_cell import UnknownSizeError
from tfdeq.cell_calls.masks import attach_masks
from tfdeq.cell_calls.pure_cell import PureCell, require_two_inputs
from tfdeq.cell_calls.scoped_call import ScopedCall
from tfdeq.fixed_point import fixed_point, mark_non_finite
from tfdeq.numerics.limits import Limits
from tfdeq.numerics.xla import compiles_with_xla
from tfdeq.rows import finite_rows, rows_of, without_rows
from tfdeq.solution import Solution
from tfdeq.solvers.solver import require_integer, require_positive_integer
from tfdeq.steadiness.layer_penalty import LayerPenalty
from tfdeq.steadiness.training_control import TrainingControl


@keras.saving.register_keras_serializable(package="tfdeq")
class DEQLayer(keras.layers.Layer):
    """The equilibrium z* = cell(z*, x) of a weight-tied cell.

    The cell is an ordinary Keras layer or model: its weights, Dropout (one mask for the whole solve),
    BatchNormalization (batch statistics in training), seed generators and dtype policy work as in any
    Keras model. What a cell does besides returning its output happens once a call, at the equilibrium,
    in training and in inference: variables that it assigns (moving statistics, the seeds that it draws
    from, the state of a stateful recurrent layer, the kernel of SpectralNormalization), and losses that
    it adds (add_loss, activity_regularizer), whose gradient reaches z*, x and the weights. What is random
    outside of Keras's seed generators is new in every evaluation. The mask of x reaches the layers in
    the cell; the equilibrium carries the mask that they put on it, or see `compute_mask`. The state of the
    solve is float32 (float64 under a float64 policy) also where the cell computes in half precision.
    Rows of a batch do not influence one another, unless the cell mixes them, as
    BatchNormalization does in training. Gradients reach the weights and x, not z0.

    In `fit` and `evaluate` the logs show, per layer name: `_steps`, `_residual` and `_converged` (mean
    evaluations, mean relative residual, share of samples that met the tolerance), and the same for
    the backward solve as `_backward_steps`, `_backward_residual`, `_backward_converged`.

    Args:
        cell: layer with call(z, x, ...) -> like z, or a functional model of the inputs [z, x] (x's
            tensors one after another, if it is a nest; of several outputs, that many first inputs are z),
            which starts from zeros like its z, whose unknown sizes are those of x. If it
            has a method initial_state(x) -> z0, that is the start (it may not create weights); else
            zeros like x. If it has a method inject(x), that is called once before the solve and
            its result stands for x in call(z, x): what of the input is the same in every step. Its
            leaves are [B, ...], or [1, ...] for what all samples share.
        solver: solver or its name. Default "broyden".
        adjoint: adjoint or its name. Default "implicit".
        jacobian_penalty: weight of ‖∂f/∂z‖²_F / D in the loss, >= 0 (see
            `tfdeq.jacobian_penalty`); 0.1 to 1 keeps long training steady. Default 0: none. "auto":
            0.1 plus 10 times the batch's mean residual, with at least 2 power steps; and no
            gradient reaches the cell and x through z while that residual is above 0.1, so that the
            penalty alone brings the equilibria back.
        jacobian_penalty_fraction: share of the batch that the penalty is estimated on, in (0, 1]:
            rows evenly spread from a first one that each call draws, by the layer's seed generator.
            What the cell draws or averages for a batch (Dropout, BatchNormalization) it does for
            these rows. Default 0.25.
        jacobian_penalty_power_steps: power iterations on the penalty's noise, >= 0 (see
            `tfdeq.jacobian_penalty`). Default 0.
        training_max_steps: evaluations at most in training, where a call names none: a number; or a
            pair (lowest, highest), between which each call draws one, uniformly and the same for
            all samples, so that the model does not come to rely on one budget. At most the
            solver's max_steps. Default None: the solver's.
        convergence_metrics: whether to keep the metrics named above. Default True.
        exclude_non_finite: whether samples whose x has NaN or infinity stay out of every gradient
            (their equilibrium is the start, their status NON_FINITE), so that a loss that masks them
            is enough. Default False: their NaN is seen.
        explicit_steps: > 0: apply the cell so many times instead of solving, as the call argument of this
            name does; a baseline of that depth. Default 0: solve.

    Call arguments:
        x: tensor or nest of tensors [B, ...]. z0: a start like the state. tolerance, max_steps, patience,
        absolute_tolerance, backward_tolerance, backward_max_steps: scalars or [B], for this call, as
        of `tfdeq.fixed_point`. training: bool. return_solution: return the `Solution` instead of z;
        its z is of the solver's dtype, of which its residual is, also where the layer's output is
        rounded to half precision.
        iterates: numbers of evaluations; with return_solution, the solution's `iterates` are the
        states after each of them, so that a loss may be put on them too. trace: with
        return_solution, the solution's `trace` has the residual of every iterate. throw: raise unless
        every sample has converged.
        explicit_steps: a number of plain applications from the start instead of a solve, with
        ordinary backpropagation through them (a weight-tied network of that depth). mask: that of x, where it
        carries none; a cell whose call takes a mask receives it.

    Raises:
        ValueError: at construction for bad settings, or a cell of one input; at build for a cell whose
            output is unlike z; in a call where neither the cell, x nor a z0 says how large the state is.

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
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not isinstance(cell, keras.layers.Layer):
            raise ValueError(
                f"cell must be a Keras layer or model with call(z, x); received {cell!r}."
            )
        if isinstance(cell, keras.Sequential):
            raise ValueError(
                f"cell must have two inputs, z and x; received the Sequential {cell.name!r}, which has "
                "one. Use a functional model keras.Model([z, x], output), or a layer with call(z, x)."
            )
        self._penalty = LayerPenalty(
            jacobian_penalty, jacobian_penalty_fraction, jacobian_penalty_power_steps
        )
        require_two_inputs(cell)
        self.cell = cell
        self._pure_cell = PureCell(cell, self.compute_dtype)
        self.solver = solvers.get(solver)
        self.adjoint = adjoints.get(adjoint)
        self.jacobian_penalty = self._penalty.weight
        self.jacobian_penalty_fraction = self._penalty.fraction
        self.jacobian_penalty_power_steps = int(jacobian_penalty_power_steps)
        # Without a penalty of its own a layer has one as soon as a callback scales it.
        self.training_control = TrainingControl(1.0 if self.jacobian_penalty else 0.0)
        self.training_max_steps = _checked_budget(training_max_steps, self.solver.max_steps)
        self.convergence_metrics = bool(convergence_metrics)
        self.exclude_non_finite = bool(exclude_non_finite)
        require_integer("explicit_steps", explicit_steps, lowest=0)
        self.explicit_steps = explicit_steps
        self.supports_masking = True
        self._seed_generator = None
        if self.jacobian_penalty or isinstance(self.training_max_steps, tuple):
            self._seed_generator = keras.random.SeedGenerator()
        self._x_dtypes = None
        self._forward_metrics = self._backward_metrics = None
        if self.convergence_metrics:
            self._forward_metrics = ConvergenceMetrics(self.name)
            self._backward_metrics = ConvergenceMetrics(f"{self.name}_backward")
            self._convergence = [*self._forward_metrics.all(), *self._backward_metrics.all()]

    def __call__(self, x, *args, **kwargs):
        if not self.built:
            # build() receives shapes only; the cell may need to know which inputs are integers.
            self._x_dtypes = keras.tree.map_structure(_dtype_name, x)
        return super().__call__(x, *args, **kwargs)

    def build(self, x_shape):
        dtypes = self._x_dtypes
        if dtypes is None:
            dtypes = keras.tree.map_shape_structure(lambda _: "float32", x_shape)
        shapes: list[tuple] = []
        keras.tree.map_shape_structure(shapes.append, x_shape)
        specs = [
            keras.KerasTensor(shape, dtype=self._input_dtype(dtype))
            for shape, dtype in zip(shapes, keras.tree.flatten(dtypes), strict=True)
        ]
        x = keras.tree.pack_sequence_as(dtypes, specs)
        z = self._pure_cell.state_spec(x)
        self._pure_cell.note_shapes(x, z)
        try:
            z, output = self._pure_cell.output_spec(z, x)
        except Exception as error:
            raise ValueError(
                f"The cell {self.cell.name!r} of {self.name!r} could not be applied to a state z of "
                f"{_text(z)} and an input x of {_text(x)}. Give the cell a call(z, x) that accepts "
                "these, or an initial_state(x) that returns a state of the right shape. "
                f"The cell said: {error}"
            ) from error
        if not _alike(output, z):
            raise ValueError(
                f"The cell {self.cell.name!r} of {self.name!r} must return the structure and shape of "
                f"its state z: {_text(z)}; it returned {_text(output)} for an input x of {_text(x)}. "
                "Change the cell's last layer, or give the cell an initial_state(x) that returns a "
                "state like its output."
            )

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
        if not return_solution and (iterates is not None or trace):
            raise ValueError(
                "iterates and trace are part of the Solution: call the layer with "
                "return_solution=True."
            )
        # Where further arguments are tensors, Keras hands the mask of x on by this name.
        mask = x_mask if mask is None else mask
        # Keras hands on the masks of a nest, also where none of its tensors has one.
        if all(leaf is None for leaf in keras.tree.flatten(mask)):
            mask = None
        finite = None
        if self.exclude_non_finite:
            finite = finite_rows(x, rows_of(keras.tree.flatten(x)[0]))
            x = x if finite is None else without_rows(x, finite)
        x = attach_masks(x, mask)
        start = x
        x = self._pure_cell.inject(x)
        f = self._pure_cell.function(bool(training), mask, x)
        usual = self._usual_start(start, z0)
        scoped = ScopedCall(self.name)
        if explicit_steps is None:
            explicit_steps = scoped.explicit_steps(self.explicit_steps)
        z0 = scoped.start(z0, usual, lambda z0: self._given_start(z0, usual))
        if explicit_steps is None:
            given = Limits(tolerance, max_steps, patience, absolute_tolerance)
            solution = self._solve(
                f,
                z0,
                x,
                scoped,
                bool(training),
                **self._limits(scoped, z0, given, bool(training), trace)._asdict(),
                backward_tolerance=backward_tolerance,
                backward_max_steps=backward_max_steps,
                iterates=iterates,
                trace=trace,
                throw=throw,
            )
        elif iterates is not None or trace or throw:
            raise ValueError(
                "iterates, trace and throw are those of a solve: explicit_steps makes none."
            )
        else:
            solution = self._apply_explicitly(f, z0, x, explicit_steps, bool(training))
        if finite is not None:
            solution = mark_non_finite(solution, finite, z0)
        if explicit_steps is None and (training or in_evaluation()) and self._forward_metrics:
            self._forward_metrics(solution)
        if training:
            penalty = self._penalty(
                f,
                (solution.z, x, f.theta, f.masks.leaves()),
                solution.residual,
                self.training_control,
                self._next_seed,
            )
            if penalty is not None:
                self.add_loss(penalty)
            if explicit_steps is None:
                solution = self._penalty.gated(solution, self.training_control)
        end = f.finish(solution.z, x)
        for loss in end.losses:
            # In the solver's dtype: in half precision a loss cannot be added to fit's.
            self.add_loss(self._pure_cell.as_state(loss))
        scoped.record(solution)
        if not return_solution:
            return self._as_output(solution.z, end.masks)
        return solution._replace(
            z=attach_masks(solution.z, end.masks),
            iterates=[attach_masks(state, end.masks) for state in solution.iterates] or (),
        )

    def _solve(self, f, z0, x, scoped, training, **settings) -> Solution:
        """Solves for one call; settings: those of `fixed_point`."""
        backward_callback = self._backward_callback(training, scoped)

        def solve(compaction):
            args = f.arguments(x)
            return fixed_point(
                f,
                z0,
                args,
                self.solver,
                self.adjoint,
                **settings,
                # Masks go along with their samples.
                batched_args=[0, 2][: len(args) - 1],
                compaction=compaction,
                backward_callback=backward_callback,
            )

        # In training a cell may draw noise, or statistics, for the batch as it is.
        return self._pure_cell.solve(f, z0, x, solve, not training and scoped.compaction)

    def _apply_explicitly(self, f, z0, x, steps, training):
        require_positive_integer("explicit_steps", steps)

        def apply(_):
            return apply_explicitly(f, z0, f.arguments(x), steps, unroll=training)

        return self._pure_cell.solve(f, z0, x, apply, compaction=False)

    def initial_state(self, x: Any) -> Any:
        """Returns the start of the solve for the input x: the cell's initial_state, or zeros."""
        return self._pure_cell.start(x)

    def convergence_report(self) -> dict[str, float]:
        """Returns the convergence metrics' means since the last report, and resets them.

        Names: steps, residual, converged, and the same with backward_ in front. Those that received
        nothing (no solve was made, or none with a gradient) are left out.
        """
        report = {}
        if self.convergence_metrics:
            report.update(self._forward_metrics.report(""))
            report.update(self._backward_metrics.report("backward_"))
        return report

    def compute_output_spec(self, x, z0=None, **kwargs):
        def like_state():
            return keras.tree.map_structure(
                lambda leaf: keras.KerasTensor(leaf.shape, dtype=dtype), state
            )

        state = self._pure_cell.state_spec(x, z0)
        dtype = self.compute_dtype
        if not kwargs.get("return_solution"):
            return like_state()
        dtype = keras.tree.flatten(state)[0].dtype
        batch = keras.tree.flatten(state)[0].shape[0]
        counts = [keras.KerasTensor((batch,), dtype=d) for d in ("float32", "int32", "int32")]
        states = [like_state() for _ in kwargs.get("iterates") or ()] or ()
        trace = ()
        if kwargs.get("trace"):
            trace = keras.KerasTensor((batch, None), dtype="float32")
        return Solution(like_state(), *counts, states, trace)

    def compute_output_shape(self, x_shape):
        """Returns the state's shape, or nest of shapes, for the shape or shapes of x."""
        dtypes = keras.tree.flatten(self._x_dtypes)
        shapes: list[tuple] = []
        keras.tree.map_shape_structure(shapes.append, x_shape)
        if self._x_dtypes is None or len(dtypes) != len(shapes):
            dtypes = ["float32"] * len(shapes)
        specs = iter(
            [
                keras.KerasTensor(shape, dtype=self._input_dtype(dtype))
                for shape, dtype in zip(shapes, dtypes, strict=True)
            ]
        )
        x = keras.tree.map_shape_structure(lambda _: next(specs), x_shape)
        return keras.tree.map_structure(
            lambda leaf: tuple(leaf.shape), self._pure_cell.state_spec(x)
        )

    def compute_mask(self, x, previous_mask=None):
        """Returns the masks of the equilibrium's leaves, for x's mask or nest of masks; None: none.

        In a call these are for the leaves on which the cell's layers have put none. A cell with a
        compute_mask(z, previous_mask) of its own says what they are. Else a state that starts as zeros
        like x has x's masks, and any other has x's mask on those leaves that have x's length.
        """
        if all(mask is None for mask in keras.tree.flatten(previous_mask)):
            return None
        symbolic = all(isinstance(leaf, keras.KerasTensor) for leaf in keras.tree.flatten(x))
        if self._pure_cell.computes_masks and not symbolic:
            return None  # The cell was asked in its call.
        state = self._pure_cell.state_spec(x)
        if self._pure_cell.computes_masks:
            return self.cell.compute_mask(state, previous_mask)
        masks = self._pure_cell.carried_masks(previous_mask, keras.tree.flatten(state))
        return keras.tree.pack_sequence_as(state, masks)

    def get_config(self):
        cell = keras.saving.serialize_keras_object(self.cell)
        cell.pop("build_config", None)  # build() builds the cell, from x's shape
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
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in ("cell", "solver", "adjoint"):
            if isinstance(config[name], dict):
                config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)

    def get_build_config(self):
        return {**(super().get_build_config() or {}), "x_dtypes": self._x_dtypes}

    def build_from_config(self, config):
        self._x_dtypes = config.get("x_dtypes")
        super().build_from_config(config)

    def _usual_start(self, x: Any, z0: Any) -> Any:
        """The start for x; beside a z0, only what a start is like, if x does not say more."""
        try:
            return self._pure_cell.start(x)
        except UnknownSizeError:
            if z0 is None:
                raise
            return self._pure_cell.state_spec(x, z0)

    def _given_start(self, z0: Any, usual: Any) -> Any:
        """Returns the caller's z0 as a state; it must be like the usual start."""
        usual = self._pure_cell.declared_state(usual)
        received, expected = keras.tree.flatten(z0), keras.tree.flatten(usual)
        fits = len(received) == len(expected) and all(
            tf.TensorShape(one.shape).is_compatible_with(other.shape)
            for one, other in zip(received, expected, strict=True)
        )
        if not fits:
            raise ValueError(
                f"z0 must be like the state of {self.name!r}, {_text(usual)}; received {_text(z0)}."
            )
        return self._pure_cell.as_state(z0)

    def _limits(
        self, scoped: ScopedCall, z0: Any, given: Limits, training: bool, trace: bool
    ) -> Limits:
        """Returns the limits of a call: its own, else a scope's, else the layer's."""
        first, solver = tf.nest.flatten(z0)[0], self.solver
        batch = tf.shape(first)[:1]
        never = tf.int32.max if solver.patience is None else solver.patience
        steps, own = given.max_steps, None
        if steps is None and training:
            own = self._draw_training_max_steps()
            if not trace:
                own = self.training_control.budget(own, solver.max_steps)
        # XLA has to know how long a trace can become.
        if trace and compiles_with_xla() and not scoped.known:
            steps = own if steps is None else steps
        else:
            steps = scoped.limit("max_steps", steps, own, solver.max_steps, batch, tf.int32)
        others = {
            name: scoped.limit(name, getattr(given, name), None, usual, batch, dtype)
            for name, usual, dtype in (
                ("tolerance", solver.tolerance, first.dtype),
                ("patience", never, tf.int32),
                ("absolute_tolerance", solver.absolute_tolerance, first.dtype),
            )
        }
        return Limits(max_steps=steps, **others)

    def _backward_callback(
        self, training: bool, scoped: ScopedCall
    ) -> Callable[[Solution], None] | None:
        """What receives the backward solve's result: the metrics in training, and a scope."""
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

    def _draw_training_max_steps(self) -> int | tf.Tensor | None:
        if not isinstance(self.training_max_steps, tuple):
            return self.training_max_steps
        lowest, highest = self.training_max_steps
        seed = tf.cast(self._next_seed(), tf.int64)
        return tf.random.stateless_uniform((), seed, lowest, highest + 1, tf.int32)

    def _as_output(self, z: Any, masks: Any) -> Any:
        z = tf.nest.map_structure(lambda leaf: tf.cast(leaf, self.compute_dtype), z)
        return attach_masks(z, masks)

    def _input_dtype(self, dtype: str) -> str:
        return self.compute_dtype if "float" in dtype else dtype

    def _next_seed(self) -> tf.Tensor:
        """[2] integers: the layer's generator's, or what all parts of a batch share."""
        part = batch_part.current()
        if part is not None:
            return part.next_seed()
        if self._seed_generator is None:  # a callback asks for a penalty that the layer has not
            return tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32)
        return self._seed_generator.next()


def _checked_budget(budget: Any, most: int) -> int | tuple[int, int] | None:
    """training_max_steps as None, a number or a pair."""
    if budget is None:
        return None
    numbers = tuple(budget) if isinstance(budget, list | tuple) else (budget,)
    for number in numbers:
        require_positive_integer("training_max_steps", number)
    if len(numbers) > 2 or list(numbers) != sorted(numbers) or numbers[-1] > most:
        raise ValueError(
            "training_max_steps must be a number or a pair (lowest, highest), at most the solver's "
            f"max_steps {most}; received {budget!r}."
        )
    return numbers if len(numbers) == 2 else numbers[0]


def _dtype_name(leaf: Any) -> str:
    return keras.backend.standardize_dtype(getattr(leaf, "dtype", "float32"))


def _alike(one: Any, other: Any) -> bool:
    """Whether nests of symbolic tensors have as many leaves, of shapes that may be the same."""
    shapes = [
        [tf.TensorShape(leaf.shape) for leaf in keras.tree.flatten(spec)] for spec in (one, other)
    ]
    if len(shapes[0]) != len(shapes[1]):
        return False
    return all(left.is_compatible_with(right) for left, right in zip(*shapes, strict=True))


def _text(spec: Any) -> str:
    return ", ".join(f"{tuple(leaf.shape)} {leaf.dtype}" for leaf in keras.tree.flatten(spec))
