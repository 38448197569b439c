"""`certified_radius`: the distance within which no perturbation of an input changes the answer."""

from typing import Any

import keras
import tensorflow as tf

from tfdeq.cells.monotone.parts import ExactParts
from tfdeq.certificates.linear_head import readout
from tfdeq.certificates.lipschitz import ROUNDING, lipschitz_bound, matrix_norm
from tfdeq.layer import DEQLayer
from tfdeq.solvers.solver import require_positive


def certified_radius(model: Any, inputs: Any, lipschitz: float | None = None) -> tf.Tensor:
    """Returns how far each input may move, in l2, before the model's answer can change.

    The answer is the class i of the largest logit. Let S = (I − W + (I − W)ᵀ)/2 = C Cᵀ >= m I for a
    monotone cell. The equilibria of two inputs x and y differ by a δ with ‖Cᵀδ‖² <= δᵀU (x − y), which
    is a ball. Let r_ij be the difference of two rows of a linear readout. Over this ball, r_ij · δ is
    at most κ_ij ‖x − y‖, with
    κ_ij = (‖UᵀS^(−1) r_ij‖ + ‖C^(−1) r_ij‖ ‖C^(−1) U‖) / 2.
    So no other class j can become larger within the radius min_j (logit_i − logit_j) / κ_ij. κ_ij is at
    most ‖r_ij‖ ‖U‖ / m, the published constant, with equality for S = m I and r_ij along U. Layers
    before the equilibrium multiply it by their Lipschitz constants.

    The radius is a bound, not an estimate. Norms are singular values, computed in float64, of the
    weights as the cell uses them; the norm of a convolution is the largest over all frequencies. Power
    iteration, which estimates from below, is not used. The error of the solve is included: with ρ = z −
    f(z), in float64, the equilibrium is within ‖C^(−1) W ρ‖ of f(z) in that metric. This times ‖C^(−1)
    r_ij‖ is subtracted from the margin twice, once for the input and once for a neighbour whose solve
    has the same error. So a sample whose solve is far from converged has radius 0.

    Args:
        model: a Keras model: a sequence of layers, one of which is a `DEQLayer` of a monotone cell
            (`tfdeq.cells.MonotoneDense` with inputs [B, n], or `MonotoneConvolution`). The layers after
            it must be linear, and the last one returns [B, classes]; a softmax at the end is ignored.
            With lipschitz: any function of inputs that returns logits [B, classes].
        inputs: [B, ...], as for the model.
        lipschitz: L > 0 with ‖logits(x) − logits(y)‖₂ <= L ‖x − y‖₂ for all x and y, if you know one.
            The radius is then min_j (logit_i − logit_j) / (√2 L), from the logits as returned. Default
            None: computed from the model.

    Returns:
        [B] float32, in units of the inputs; 0 where nothing is certified.

    Raises:
        ValueError: for a model that is not such a sequence; the message names the layer that does not
            fit.

    Source: Pabbaraju, Winston, Kolter, Estimating Lipschitz constants of monotone deep equilibrium
        models, ICLR 2021, theorem 1, for ‖U‖ / m; here S takes the place of m I. Margins: Tsuzuku,
        Sato, Sugiyama, Lipschitz-Margin Training, arXiv:1802.04034, section 3.

    Example:
        >>> cell = tfdeq.cells.MonotoneDense(8, monotonicity=1.0)
        >>> layers = [DEQLayer(cell, "peaceman_rachford"), keras.layers.Dense(3)]
        >>> model = keras.Sequential([keras.Input([2]), *layers])
        >>> certified_radius(model, tf.ones([5, 2])).shape
        TensorShape([5])
    """
    if lipschitz is not None:
        require_positive("lipschitz", lipschitz)
        logits = tf.cast(model(inputs), tf.float64)
        lengths = tf.fill([logits.shape[-1]] * 2, tf.constant(2**0.5 * lipschitz, tf.float64))
        radius = _smallest(logits, lengths, tf.zeros_like(lengths), tf.zeros_like(logits[:, 0]))
    else:
        radius = _of_chain(*_chain(model), inputs)
    # Rounded down; NaN becomes 0.
    radius = tf.cast(radius * (1 - 1e-6), tf.float32)
    return tf.where(tf.math.is_finite(radius) & (radius > 0), radius, 0)


def _of_chain(before: list, layer: DEQLayer, after: list, inputs: Any) -> tf.Tensor:
    x, bound = tf.convert_to_tensor(inputs), tf.ones([], tf.float64)
    for each in before:
        bound *= lipschitz_bound(each)
        x = each(x)
    z = tf.cast(layer(x, training=False), tf.float64)
    parts = layer.cell.exact_parts(x)
    metric = _Metric(parts)
    image = tf.nn.relu(parts.affine(z))
    error = metric.length(parts.recurrent(z - image))
    logits, rows = readout(after, image)
    differences = [row[None] - rows for row in tf.unstack(rows)]
    lengths = tf.stack([metric.length(each) for each in differences])
    moved = tf.stack([metric.pushed(each) for each in differences])
    slopes = bound * (moved + lengths * metric.norm(parts.injection)) / 2
    return _smallest(logits, slopes, lengths, 2 * error)


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
        if len(before) != 1:
            raise ValueError(
                f"certified_radius takes a model of layers one after another; {made_by.name!r} has "
                f"{len(before)} inputs. Pass the model's Lipschitz constant, lipschitz=."
            )
        (tensor,) = before
    places = [place for place, layer in enumerate(layers) if isinstance(layer, DEQLayer)]
    if len(places) != 1 or not hasattr(layers[places[0]].cell, "exact_parts"):
        cells = [type(layers[place].cell).__name__ for place in places]
        raise ValueError(
            "certified_radius wants one DEQLayer of a monotone cell (tfdeq.cells.MonotoneDense or "
            f"MonotoneConvolution) in the model; its cells are {cells}. Pass the model's Lipschitz constant, "
            "lipschitz=, if you know one."
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

    def length(self, states: tf.Tensor) -> tf.Tensor:
        """[R, …] -> [R]."""
        return self._norms(self._solved(self._parts.transform(states)))

    def pushed(self, states: tf.Tensor) -> tf.Tensor:
        """‖UᵀS^(−1) v‖ for each state v, [R, …] -> [R]."""
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


def _smallest(
    logits: tf.Tensor, slopes: tf.Tensor, lengths: tf.Tensor, error: tf.Tensor
) -> tf.Tensor:
    """min over j ≠ i of (logit_i − logit_j − error length_ij) / slope_ij, i the answer, [B].

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
