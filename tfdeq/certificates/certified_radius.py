"""`certified_radius`: the distance within which no perturbation of an input changes the answer."""

from typing import Any

import tensorflow as tf

from tfdeq.certificates.certificate import Certificate, rounded_down, smallest_distance
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
    has the same error. So a sample whose solve is far from converged has radius 0. So has one whose
    state is of another class than f(z).

    Args:
        model: a Keras model: a sequence of layers, one of which is a `DEQLayer` of a monotone cell
            (`tfdeq.cells.MonotoneDense` with inputs [B, n], `MonotoneConvolution`, or
            `MonotoneMultiscaleConvolution`, whose branches `tfdeq.models.BranchMeans` reads). The layers
            after it must be linear, and the last one returns [B, classes]; a softmax at the end is ignored.
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
        zeros = tf.zeros_like(lengths), tf.zeros_like(logits[:, 0])
        return rounded_down(smallest_distance(logits, lengths, *zeros))
    return Certificate(model).radius(inputs)
