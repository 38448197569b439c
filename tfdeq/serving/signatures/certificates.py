"""The output `certified_radius` of models with a monotone equilibrium."""

from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

from tfdeq import Solution
from tfdeq.certificates.certificate import Certificate, Slopes
from tfdeq.numerics.fixed_shapes import inside_for_litert

MEANING = (
    "[B] float32: l2 distance, in units of the input, within which no input has another class as its "
    "largest logit, at the exact equilibrium. A bound from the weights and the answer's residual. 0: "
    "nothing is certified, as for every answer whose status is not 0 (converged)."
)

_Output = Callable[[Sequence[tf.Tensor], Mapping[str, Solution]], tf.Tensor]


def certificate_of(model: keras.Model) -> Certificate | None:
    """Returns the certificate of a model's answers; None if there is none."""
    try:
        found = Certificate(model)
    except ValueError:
        return None
    return None if found.layer.explicit_steps else found


def certified_output(
    model: keras.Model, specs: Sequence[tf.TensorSpec], jit_compile: bool = False
) -> _Output | None:
    """Returns the function that computes the radius of a batch from its solve.

    It is None if there is no certificate, and in a trace for LiteRT.

    Singular values of the weights are computed here, once, if the specs say the size of an input. The
    function compares the weights with those of now, by their fingerprint, because an exported version can
    be trained (`gradients=True`): if they are others, it certifies nothing. XLA has no such op, so there is
    no comparison with jit_compile.

    Args:
        specs: specs of the model's inputs.
    """
    # Certificates are computed in float64, of which LiteRT has next to nothing.
    certificate = None if inside_for_litert() else certificate_of(model)
    if certificate is None or len(specs) != 1:
        return None
    (spec,) = specs
    try:
        # Also shows, for inputs of any size, whether the layers have a certificate.
        slopes = certificate.slopes(
            tf.zeros([1, *(size or 8 for size in spec.shape[1:])], spec.dtype)
        )
    except ValueError:
        return None
    if not spec.shape[1:].is_fully_defined():
        return lambda inputs, solutions: _radius(certificate, inputs, solutions, None)
    slopes = Slopes(*(part.numpy() for part in slopes))
    known = None if jit_compile else _fingerprint(certificate).numpy()

    def output(inputs, solutions):
        radius = _radius(certificate, inputs, solutions, slopes)
        if known is None:
            return radius
        return tf.where(tf.reduce_all(_fingerprint(certificate) == known), radius, 0)

    return output


def _radius(certificate, inputs, solutions, slopes: Slopes | None) -> tf.Tensor:
    (x,), (solution,) = inputs, solutions.values()
    return tf.where(solution.converged, certificate.radius_of(x, solution.z, slopes), 0)


def _fingerprint(certificate: Certificate) -> tf.Tensor:
    """Returns [weights, 8] uint8."""
    flat = [tf.reshape(tf.convert_to_tensor(weight), [1, -1]) for weight in certificate.weights]
    return tf.concat(
        [tf.raw_ops.Fingerprint(data=each, method="farmhash64") for each in flat], axis=0
    )
