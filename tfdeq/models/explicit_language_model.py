"""A causal language model around an explicit network, to compare equilibria with."""

from typing import Any

import keras
from keras import ops

import tfdeq.baselines  # noqa: F401  registers the networks, which saved models refer to by name
from tfdeq.models.token_model import TokenModel


@keras.saving.register_keras_serializable(package="tfdeq")
class ExplicitLanguageModel(TokenModel):
    """Embedding -> a network of `tfdeq.baselines` -> norm -> next-token logits.

    Args:
        vocabulary_size, sequence_length, width: see `TokenModel`.
        network: a causal layer with call(x, memory, training, mask) and `width`.
        **kwargs: tied_output, cutoffs, cutoff_factor, input_dropout, output_dropout of `TokenModel`,
            and Keras's own.

    Call arguments: like `LanguageModel`, without those of a solver.

    Returns:
        logits [B, T, V] float32, or losses [B, T]; with a carried memory (logits, memory).

    Example:
        >>> from tfdeq.baselines import Recurrent
        >>> model = ExplicitLanguageModel(11, sequence_length=8, width=6, network=Recurrent(8))
        >>> model(keras.ops.zeros([2, 5], "int32")).shape
        TensorShape([2, 5, 11])
    """

    def __init__(
        self,
        vocabulary_size: int,
        sequence_length: int,
        width: int,
        network: keras.layers.Layer,
        **kwargs: Any,
    ):
        super().__init__(vocabulary_size, sequence_length, width, network.width, **kwargs)
        self.network = network

    @property
    def remembers(self) -> bool:
        """Whether `call` takes and returns a carried memory of the preceding text."""
        return getattr(self.network, "span", 0) is not None

    def build_states(self, shape):
        """Builds the network for embeddings of a shape."""
        self.network.build(shape)

    def initial_memory(self, batch_size: int) -> Any:
        """Returns the carried memory at the beginning of texts: a nest of zeros [B, …]."""
        return self.network.initial_memory(batch_size)

    def call(self, tokens, targets=None, memory=None, mask=None, training=None):
        x = self.embed(tokens, training)
        if memory is None:
            return self._answer(self.network(x, training=training, mask=mask), targets, training)
        memory = keras.tree.map_structure(ops.stop_gradient, memory)
        states, memory = self.network(x, memory=memory, training=training, mask=mask)
        return self._answer(states, targets, training), memory

    def compute_output_spec(self, tokens, targets=None, memory=None, **kwargs):
        answer = self._answer_spec(tokens, targets)
        return answer if memory is None else (answer, memory)

    def get_config(self):
        network = keras.saving.serialize_keras_object(self.network)
        network.pop("build_config", None)  # build() builds the network
        return {**super().get_config(), "network": network}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if isinstance(config["network"], dict):
            config["network"] = keras.saving.deserialize_keras_object(config["network"])
        return cls(**config)
