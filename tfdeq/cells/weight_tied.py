"""Any stack of layers as one weight-tied cell: the universality of weight-tied networks."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops


@keras.saving.register_keras_serializable(package="tfdeq")
class WeightTiedCell(keras.layers.Layer):
    """f((z_1, …, z_L), x) = (layer_1(x), layer_2(z_1), …, layer_L(z_{L−1})); see `weight_tied`.

    Args:
        layers: as for `weight_tied`.

    Call arguments: z: tuple of all layers' outputs [B, ...]; x: one tensor [B, ...], the first layer's
    input; mask: the first layer's mask, which passes through the layers as in any Keras model. Returns
    a tuple like z, whose parts carry the masks that their layers set.
    """

    def __init__(self, layers: Sequence[keras.layers.Layer], **kwargs: Any):
        # Each layer casts its input itself: a stack may mix dtypes.
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True
        self.layers = _checked(layers)

    def initial_state(self, x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Returns zeros like every layer's output for the input x [B, ...].

        Raises:
            ValueError: for a layer that cannot take the output of the one before it, or whose output is
                not a single floating tensor [B, ...].
        """
        specs = self._output_specs(x)
        if all(None not in spec.shape[1:] for spec in specs):
            batch = ops.shape(x)[0]
            return tuple(ops.zeros((batch, *spec.shape[1:]), dtype=spec.dtype) for spec in specs)
        # For a size that is unknown until the graph runs, the layers are called to find the shapes
        # of their outputs. The scope discards the random numbers and counts that they update.
        zeros = []
        with keras.StatelessScope():
            for layer in self.layers:
                x = layer(x)
                zeros.append(ops.zeros_like(x))
        return tuple(zeros)

    def call(self, z, x, training=None, mask=None):
        # `training` reaches the layers through Keras's call context.
        outputs = []
        for layer, tensor in zip(self.layers, (x, *z[:-1]), strict=True):
            if mask is not None:
                tensor = tf.identity(tensor)
                tensor._keras_mask = mask
            output = layer(tensor)
            mask = getattr(output, "_keras_mask", None)
            outputs.append(output)
        return tuple(outputs)

    def compute_mask(self, z, previous_mask=None):
        # The layers have already set the masks on their outputs.
        return None

    def get_config(self):
        # A layer that occurs several times must be a single layer again after loading.
        unique = list({id(layer): layer for layer in self.layers}.values())
        places = {id(layer): place for place, layer in enumerate(unique)}
        return {
            **super().get_config(),
            "layers": [keras.saving.serialize_keras_object(layer) for layer in unique],
            "order": [places[id(layer)] for layer in self.layers],
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        unique = [keras.saving.deserialize_keras_object(layer) for layer in config.pop("layers")]
        return cls([unique[place] for place in config.pop("order")], **config)

    def _output_specs(self, x: tf.Tensor) -> list[keras.KerasTensor]:
        """Returns the specs of every layer's output for an input like x, and builds the layers."""
        if not hasattr(x, "shape"):
            raise ValueError(
                f"A weight-tied stack takes one tensor as x; received {x!r}. Join the parts before it."
            )
        spec = keras.KerasTensor(tuple(x.shape), dtype=keras.backend.standardize_dtype(x.dtype))
        specs = []
        for number, layer in enumerate(self.layers, start=1):
            try:
                output = _output_spec(layer, spec, self.name)
            except Exception as error:
                raise ValueError(
                    f"Layer {number} of {self.name!r}, {layer.name!r}, could not be applied to "
                    f"{_origin(number)}, {_text(spec)}. Give the layers in the order in which they "
                    f"are applied, each taking one tensor. It said: {error}"
                ) from error
            _check_output(output, spec, f"Layer {number} of {self.name!r}, {layer.name!r},")
            specs.append(output)
            spec = output
        return specs


def weight_tied(layers: Sequence[keras.layers.Layer], **kwargs: Any) -> WeightTiedCell:
    """A stack of L different layers as one cell that is applied L times.

    The state holds the outputs of all layers, and one application computes each from the previous one:
    f((z_1, …, z_L), x) = (layer_1(x), layer_2(z_1), …, layer_L(z_{L−1})). After k applications, z_1 …
    z_k equal the outputs of the stack, from any finite start. After L applications all of them do, and
    this is the only fixed point. The width of the state is the sum of the layers' widths. ∂f/∂z is
    nilpotent, so plain iteration is exact after L evaluations, and needs one more to detect it, forward
    and backward. The gradient of the equilibrium equals ordinary backpropagation through the stack.
    Each evaluation applies all L layers, so this is a demonstration of universality, not a faster
    network.

    The stack's output is the last part of the state: `DEQLayer(weight_tied(layers))(x)[-1]`. Give the
    solver a budget of more than L and a small tolerance: the residual is relative to the whole
    state, and says little about a part that is much smaller than the others.

    Notes on layers:

    - Before step k, the input of layer k + 1 is not yet an output of layer k, but zeros at first. The layer
      must be finite there. LayerNormalization is, because of its epsilon; a logarithm is not, and needs a z0.
    - Dropout and other noise use one mask for the whole solve: the mask that the stack draws from the
      same seeds, which advance once per call. So the equilibrium also equals the stack in training.
    - BatchNormalization in training has the stack's batch statistics at the equilibrium. The moving
      statistics advance once per call, from the equilibrium, as in the stack. But it mixes the rows of
      a batch, and each row has its own solve. Plain iteration with a small tolerance reaches all
      rows at once, forward and backward, except a row that does not change (all zeros after a ReLU)
      while the statistics of its neighbours still do: its solve stops early.
    - A layer may occur several times. State that a layer keeps between calls (the last state of a stateful
      recurrent network) is taken from the equilibrium, once per call.
    - Regularisers of weights apply. Losses that a layer adds in its call count once, at the
      equilibrium, as in the stack.

    Args:
        layers: L >= 1 Keras layers or models, each from one tensor [B, ...] to one floating
            tensor [B, ...], in the order of the stack. Built ones keep their weights, and share them
            with the model that they come from.
        **kwargs: name and dtype of the cell; each layer computes in its own dtype.

    Returns:
        The cell, for `DEQLayer`; its state is a tuple of L tensors.

    Raises:
        ValueError: for anything but a list of layers; at build, for a layer that cannot take the
            output of the one before it.

    Source: Bai, Kolter, Koltun, Deep Equilibrium Models, arXiv:1909.01377, section 3 and appendix
        (universality of weight-tied, input-injected networks); Trellis Networks for Sequence
        Modeling, arXiv:1810.06682, section 4.

    Example:
        >>> from tfdeq import DEQLayer, FixedPointIteration
        >>> layers = [keras.layers.Dense(5, "relu"), keras.layers.Dense(2)]
        >>> deq = DEQLayer(weight_tied(layers), FixedPointIteration(10, 1e-6))
        >>> solution = deq(tf.ones([3, 4]), return_solution=True)
        >>> solution.z[-1].shape, solution.steps.numpy().tolist()
        (TensorShape([3, 2]), [3, 3, 3])
        >>> bool(tf.reduce_all(solution.z[-1] == keras.Sequential(layers)(tf.ones([3, 4]))))
        True
    """
    return WeightTiedCell(layers, **kwargs)


def _checked(layers: Any) -> list[keras.layers.Layer]:
    if isinstance(layers, keras.layers.Layer) or not isinstance(layers, Sequence) or not layers:
        raise ValueError(
            f"layers must be a list of at least one Keras layer; received {layers!r}. Of a Sequential "
            "model pass model.layers."
        )
    for number, layer in enumerate(layers, start=1):
        if isinstance(layer, keras.layers.InputLayer):
            raise ValueError(
                f"layers must compute something; number {number} is the InputLayer {layer.name!r}. "
                "Leave it out."
            )
        if not isinstance(layer, keras.layers.Layer):
            raise ValueError(
                f"layers must be Keras layers; number {number} is {layer!r}. Wrap a function as "
                "keras.layers.Activation or keras.layers.Lambda."
            )
    return list(layers)


def _output_spec(
    layer: keras.layers.Layer, spec: keras.KerasTensor, scope: str
) -> keras.KerasTensor:
    if layer.built:
        return layer.compute_output_spec(spec)
    # Weights must not belong to a graph that is being traced.
    with tf.init_scope(), keras.name_scope(scope):
        return layer(spec)


def _check_output(output: Any, spec: keras.KerasTensor, who: str) -> None:
    fits = (
        isinstance(output, keras.KerasTensor)
        and len(output.shape) > 0
        and output.shape[0] in (None, spec.shape[0])
        and "float" in output.dtype
    )
    if not fits:
        received = _text(output) if isinstance(output, keras.KerasTensor) else repr(output)
        raise ValueError(
            f"{who} must return one floating tensor with the batch, {spec.shape[0]}, in dimension 0; "
            f"it returned {received} for {_text(spec)}."
        )


def _origin(number: int) -> str:
    return "the input x" if number == 1 else f"the output of layer {number - 1}"


def _text(spec: keras.KerasTensor) -> str:
    return f"{tuple(spec.shape)} {spec.dtype}"
