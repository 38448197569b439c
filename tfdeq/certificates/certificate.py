"""What is certified of a model with a monotone equilibrium; see `tfdeq.certified_radius`."""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdeq.cells.monotone.parts import ExactParts
from tfdeq.certificates.linear_head import readout
from tfdeq.certificates.lipschitz import ROUNDING, lipschitz_bound, matrix_norm
from tfdeq.layer import DEQLayer


class Slopes(NamedTuple):
    """Constants of a model's weights and of the size of its inputs, float64."""

    slopes: Any  # [K, K], κ_ij: how much faster logit j may grow than logit i, per distance
    lengths: Any  # [K, K], ‖C^(−1) r_ij‖: what an error of the state may add to it


class Certificate:
    """The radius of a model's answers, of the states that its own or other solves found.

    Args:
        model: see `tfdeq.certified_radius`.

    Attributes:
        layer: the `DEQLayer`.

    Raises:
        ValueError: for a model whose layers do not fit.
    """

    def __init__(self, model: Any):
        self._before, self.layer, self._after = _chain(model)

    def radius(self, inputs: Any) -> tf.Tensor:
        """Returns [B] float32, for inputs [B, …]."""
        x = self._features(inputs)
        return self._radius(x, self.layer(x, training=False), None)

    def radius_of(self, inputs: Any, state: Any, slopes: Slopes | None = None) -> tf.Tensor:
        """Returns [B] float32, without a solve.

        It holds for any state, as its error is bounded by its own residual.

        Args:
            inputs: [B, …]. state: [B, …] or a nest of them, a solve's result.
            slopes: of inputs of this size; None: computed here.
        """
        return self._radius(self._features(inputs), state, slopes)

    def slopes(self, inputs: Any) -> Slopes:
        """Returns the constants for inputs of the size of these, [B, …]."""
        x = self._features(inputs)
        parts = self.layer.cell.exact_parts(x)
        state = _exact(self.layer.cell.initial_state(x))
        return self._slopes(parts, _Metric(parts), readout(self._after, state)[1])

    @property
    def weights(self) -> list:
        """The weights that the constants depend on."""
        layers = [*self._before, self.layer.cell, *self._after]
        weights = [weight for layer in layers for weight in layer.weights]
        # Not the seeds of random numbers.
        return [each for each in weights if "float" in keras.backend.standardize_dtype(each.dtype)]

    def _features(self, inputs: Any) -> tf.Tensor:
        x = tf.convert_to_tensor(inputs)
        for layer in self._before:
            x = layer(x)
        return x

    def _radius(self, x: tf.Tensor, state: Any, slopes: Slopes | None) -> tf.Tensor:
        parts = self.layer.cell.exact_parts(x)
        metric = _Metric(parts)
        z = _exact(state)
        image = tf.nest.map_structure(tf.nn.relu, parts.affine(z))
        change = tf.nest.map_structure(tf.subtract, z, image)
        error = metric.length(parts.recurrent(change))
        logits, rows = readout(self._after, image)
        slopes = slopes or self._slopes(parts, metric, rows)
        radius = smallest_distance(logits, *slopes, 2 * error)
        shown, _ = readout(self._after, z)
        same = tf.equal(tf.argmax(shown, axis=1), tf.argmax(logits, axis=1))
        return rounded_down(tf.where(same, radius, 0))

    def _slopes(self, parts: ExactParts, metric: "_Metric", rows: Any) -> Slopes:
        bound = tf.ones([], tf.float64)
        for layer in self._before:
            bound *= lipschitz_bound(layer)
        count = tf.nest.flatten(rows)[0].shape[0]
        differences = [
            tf.nest.map_structure(lambda leaf: leaf[one : one + 1] - leaf, rows)  # noqa: B023
            for one in range(count)
        ]
        lengths = tf.stack([metric.length(each) for each in differences])
        moved = tf.stack([metric.pushed(each) for each in differences])
        return Slopes(bound * (moved + lengths * metric.norm(parts.injection)) / 2, lengths)


def rounded_down(radius: tf.Tensor) -> tf.Tensor:
    """Returns a float64 radius as float32, not above it; 0 for NaN and what is not positive."""
    radius = tf.cast(radius * (1 - 1e-6), tf.float32)
    return tf.where(tf.math.is_finite(radius) & (radius > 0), radius, 0)


def _exact(states: Any) -> Any:
    return tf.nest.map_structure(lambda leaf: tf.cast(leaf, tf.float64), states)


def _chain(model: Any) -> tuple[list, DEQLayer, list]:
    """Returns the layers before the equilibrium, its layer, and those after it.

    Raises:
        ValueError: for another model.
    """
    if not isinstance(model, keras.Model) or len(getattr(model, "outputs", None) or ()) != 1:
        raise ValueError(
            f"certified_radius takes a keras.Model of layers one after another; received {model!r}. Of "
            "another function of known Lipschitz constant pass that, lipschitz=."
        )
    layers, (tensor,) = [], model.outputs
    while True:
        # A layer may belong to several models, so this follows the calls made for this model.
        made_by, node = tensor._keras_history[:2]
        if isinstance(made_by, keras.layers.InputLayer):
            break
        layers.insert(0, made_by)
        before = made_by._inbound_nodes[node].input_tensors
        tensor = before[0]
        # One tensor, or all branches of a state.
        outputs = tensor._keras_history[0]._inbound_nodes[tensor._keras_history[1]].output_tensors
        if [id(one) for one in before] != [id(one) for one in outputs]:
            raise ValueError(
                f"certified_radius takes a model of layers one after another; {made_by.name!r} has "
                f"{len(before)} inputs, not all outputs of one other layer in their order. Pass the model's "
                "Lipschitz constant, lipschitz=."
            )
    places = [place for place, layer in enumerate(layers) if isinstance(layer, DEQLayer)]
    if len(places) != 1 or not hasattr(layers[places[0]].cell, "exact_parts"):
        cells = [type(layers[place].cell).__name__ for place in places]
        raise ValueError(
            "certified_radius wants one DEQLayer of a monotone cell (tfdeq.cells.MonotoneDense, "
            "MonotoneConvolution or MonotoneMultiscaleConvolution) in the model; its cells are "
            f"{cells}. Pass the model's Lipschitz constant, lipschitz=, if you know one."
        )
    (place,) = places
    return layers[:place], layers[place], layers[place + 1 :]


class _Metric:
    """Lengths ‖C^(−1) v‖ for S = C Cᵀ, the symmetric part of I − W."""

    def __init__(self, parts: ExactParts):
        self._parts = parts
        transposed = tf.linalg.matrix_transpose(parts.operator)
        symmetric = (parts.operator + transposed) / 2
        finite = tf.reduce_all(tf.math.is_finite(symmetric))
        identity = tf.eye(tf.shape(symmetric)[-1], dtype=tf.float64)
        # With NaN in the weights, the logits are NaN and the radius is 0; this only avoids an error
        # here.
        self._factor = tf.linalg.cholesky(tf.where(finite, symmetric, identity))

    def length(self, states: Any) -> tf.Tensor:
        """Nest of [R, …] -> [R]."""
        return self._norms(self._solved(self._parts.transform(states)))

    def pushed(self, states: Any) -> tf.Tensor:
        """‖UᵀS^(−1) v‖ for each state v, nest of [R, …] -> [R]."""
        solved = tf.linalg.cholesky_solve(
            self._factor, tf.linalg.matrix_transpose(self._parts.transform(states))
        )
        return self._norms(tf.matmul(self._parts.injection, solved))

    def norm(self, blocks: tf.Tensor) -> tf.Tensor:
        """Returns the largest ‖C^(−1) Uᵀ‖₂ of blocks U [n, c, d], a scalar."""
        return matrix_norm(self._solved(blocks)) * (1 + ROUNDING)

    def _norms(self, coordinates: tf.Tensor) -> tf.Tensor:
        """Returns the norms [R] of vectors with the coordinates [n, c, R]."""
        squares = tf.reduce_sum(tf.square(coordinates), axis=1)
        weighted = tf.reduce_sum(self._parts.weights[:, None] * squares, axis=0)
        return tf.sqrt(weighted) * (1 + ROUNDING)

    def _solved(self, blocks: tf.Tensor) -> tf.Tensor:
        return tf.linalg.triangular_solve(self._factor, tf.linalg.matrix_transpose(blocks))


def smallest_distance(
    logits: tf.Tensor, slopes: tf.Tensor, lengths: tf.Tensor, error: tf.Tensor
) -> tf.Tensor:
    """Returns the smallest distance at which a logit may overtake the largest, [B].

    min over j ≠ i of (logit_i − logit_j − error length_ij) / slope_ij, i the answer.

    Args:
        logits: [B, K]. slopes, lengths: [K, K]. error: [B].
    """
    answer = tf.argmax(logits, axis=1)
    margins = tf.reduce_max(logits, axis=1, keepdims=True) - logits
    margins -= error[:, None] * tf.gather(lengths, answer)
    distances = margins / tf.gather(slopes, answer)
    others = tf.logical_not(tf.one_hot(answer, logits.shape[-1], True, False))
    infinity = tf.constant(float("inf"), tf.float64)
    return tf.reduce_min(tf.where(others, distances, infinity), axis=1)
