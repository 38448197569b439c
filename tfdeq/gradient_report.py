"""`gradient_report`: compares each adjoint's gradient with an accurate implicit gradient."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdeq import adjoints, solvers
from tfdeq.cell_calls.pure_cell import PureCell
from tfdeq.fixed_point import fixed_point
from tfdeq.layer import DEQLayer
from tfdeq.solution import Solution

_REFERENCE_STEPS = 200


class RuleGradient(NamedTuple):
    """Compares one adjoint's gradient with the reference; NaN if one of the two is zero.

    Attributes:
        weights_cosine, weights_norm_ratio: over the cell's trainable weights together.
        x_cosine, x_norm_ratio: over the floating tensors of the input together.
        steps: mean evaluations of f in the forward solve.
    """

    weights_cosine: float
    weights_norm_ratio: float
    x_cosine: float
    x_norm_ratio: float
    steps: float


class GradientReport(dict):
    """A dict from an adjoint's name to its `RuleGradient`; it prints as a table.

    Attributes:
        residual: the largest relative residual of the reference's forward solve.
        backward_residual: the same for its backward solve.
    """

    def __init__(
        self, rules: Mapping[str, RuleGradient], residual: float, backward_residual: float
    ):
        super().__init__(rules)
        self.residual = residual
        self.backward_residual = backward_residual

    def __str__(self):
        width = max([len("adjoint"), *(len(name) for name in self)])
        lines = [f"{'adjoint':<{width}}  weights: cosine  norm    x: cosine  norm    steps"]
        for name, row in self.items():
            lines.append(
                f"{name:<{width}}  {row.weights_cosine:15.6f}  {row.weights_norm_ratio:6.4f}  "
                f"{row.x_cosine:9.6f}  {row.x_norm_ratio:6.4f}  {row.steps:5.1f}"
            )
        lines.append(
            f"reference: implicit, residual {self.residual:.1e}, backward {self.backward_residual:.1e}"
        )
        return "\n".join(lines)


def gradient_report(
    layer: DEQLayer,
    x: Any,
    rules: Mapping[str, str | adjoints.Adjoint] | None = None,
    *,
    training: bool = False,
    seed: int = 0,
) -> GradientReport:
    """Compares the gradients of adjoints, for one input, with an accurate implicit gradient.

    Let v be a fixed random cotangent of z*. The report compares each adjoint's ∂(vᵀz)/∂θ and
    ∂(vᵀz)/∂x with those of the reference: by their cosine, and by the ratio of norms ‖adjoint‖ /
    ‖reference‖. An adjoint solves with the layer's solver and settings, as in training. An adjoint
    that needs a special solver gets that solver, with the layer's max_steps and tolerance. The
    reference is solved by Broyden, within 200 evaluations, to a relative residual of 1e-6, or 1e-12
    under a float64 policy; the report states the residual that it reached. The layer's weights,
    seeds and metrics do not change.

    Args:
        layer: a built `DEQLayer`. To compare adjoints for a cell, make a DEQLayer(cell) and call it
            once.
        x: an input of the layer, [B, ...] tensors.
        rules: name -> adjoint (or a registered name). Default: every registered adjoint with its default
            settings, and the layer's own as "layer".
        training: whether the cell runs as in training (Dropout uses the next call's mask).
        seed: seed of the cotangent.

    Returns:
        A `GradientReport`, which prints as a table.

    Raises:
        ValueError: if layer is not built or is not a `DEQLayer`.

    Source: the two figures are those of Geng et al., On Training Implicit Models, arXiv:2111.05177,
        which compares phantom and implicit gradients by their cosine.

    Example:
        >>> class Cell(keras.layers.Layer):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.dense = keras.layers.Dense(3, kernel_initializer=keras.initializers.Identity(0.5))
        ...     def call(self, z, x):
        ...         return keras.ops.tanh(self.dense(z) + x)
        >>> layer, x = DEQLayer(Cell()), tf.ones([2, 3])
        >>> z = layer(x)
        >>> report = gradient_report(layer, x)
        >>> round(report["implicit"].weights_cosine, 3)
        1.0
    """
    if not isinstance(layer, DEQLayer) or not layer.built:
        raise ValueError(
            f"layer must be a DEQLayer that is built; received {layer!r}. Wrap a cell, "
            "DEQLayer(cell), and call it once on an input."
        )
    if rules is None:
        rules = {"layer": layer.adjoint, **{name: name for name in adjoints.REGISTRY}}
    tolerance = 1e-12 if layer.compute_dtype == "float64" else 1e-6
    tight = solvers.Broyden(max_steps=_REFERENCE_STEPS, tolerance=tolerance)
    backward: list[Solution] = []
    reference = _gradients(
        layer, x, training, seed, tight, adjoints.Implicit(tight), backward.append
    )
    rows = {}
    for name, rule in rules.items():
        rule = adjoints.get(rule)
        solver = _solver_for(rule, layer.solver)
        rows[name] = _compare(_gradients(layer, x, training, seed, solver, rule), reference)
    return GradientReport(
        rows,
        float(tf.reduce_max(reference.solution.residual)),
        float(tf.reduce_max(backward[0].residual)) if backward else math.nan,
    )


class _Gradients(NamedTuple):
    weights: list[tf.Tensor]
    x: list[tf.Tensor]
    solution: Solution


def _solver_for(rule: adjoints.Adjoint, solver: solvers.Solver) -> solvers.Solver:
    if isinstance(solver, rule.solver_kind):
        return solver
    return rule.solver_kind(max_steps=solver.max_steps, tolerance=solver.tolerance)


def _gradients(layer, x, training, seed, solver, rule, callback=None) -> _Gradients:
    """Returns the adjoint's gradients for the weights and x; the layer does not change."""
    pure = PureCell(layer.cell, layer.compute_dtype)
    x = tf.nest.map_structure(lambda leaf: _as_input(leaf, layer.compute_dtype), x)
    inputs = [leaf for leaf in tf.nest.flatten(x) if leaf.dtype.is_floating]
    weights = [variable.value for variable in layer.cell.trainable_variables]
    # The scope discards what the cell assigns in it, such as seeds and statistics.
    with keras.StatelessScope(), tf.GradientTape() as tape:
        tape.watch(inputs)
        injected = pure.inject(x)
        f = pure.function(training, None, injected)
        solution = fixed_point(
            f, pure.start(x), f.arguments(injected), solver, rule, backward_callback=callback
        )
        loss = tf.add_n(
            [
                tf.reduce_sum(leaf * _noise(leaf, seed, index))
                for index, leaf in enumerate(tf.nest.flatten(solution.z))
            ]
        )
    found = tape.gradient(loss, [*weights, *inputs], unconnected_gradients="zero")
    found = [tf.cast(tf.convert_to_tensor(leaf), tf.float64) for leaf in found]
    return _Gradients(found[: len(weights)], found[len(weights) :], solution)


def _as_input(leaf: Any, dtype: str) -> tf.Tensor:
    leaf = tf.convert_to_tensor(leaf)
    return tf.cast(leaf, dtype) if leaf.dtype.is_floating else leaf


def _noise(leaf: tf.Tensor, seed: int, index: int) -> tf.Tensor:
    return tf.random.stateless_normal(tf.shape(leaf), [seed, index], dtype=leaf.dtype)


def _compare(one: _Gradients, reference: _Gradients) -> RuleGradient:
    return RuleGradient(
        *_cosine_and_ratio(one.weights, reference.weights),
        *_cosine_and_ratio(one.x, reference.x),
        float(tf.reduce_mean(tf.cast(one.solution.steps, tf.float64))),
    )


def _cosine_and_ratio(one: list[tf.Tensor], other: list[tf.Tensor]) -> tuple[float, float]:
    if not one:
        return math.nan, math.nan
    one, other = (tf.concat([tf.reshape(leaf, [-1]) for leaf in part], 0) for part in (one, other))
    size, reference = float(tf.norm(one)), float(tf.norm(other))
    if not reference:
        return math.nan, math.nan
    cosine = float(tf.tensordot(one, other, 1)) / (size * reference) if size else math.nan
    return cosine, size / reference
