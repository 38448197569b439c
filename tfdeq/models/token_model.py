"""The base class of language models: tokens in, logits or losses out, and a carried memory."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfdeq.layer import DEQLayer
from tfdeq.models.adaptive_embedding import AdaptiveEmbedding
from tfdeq.models.adaptive_softmax import AdaptiveSoftmax
from tfdeq.models.presets import FromPreset
from tfdeq.models.row_chunks import chunked
from tfdeq.solvers.solver import require_integer, require_positive_integer


class TokenModel(FromPreset, keras.Model):
    """Embedding -> the computation of a subclass -> norm -> next-token logits.

    A subclass defines `call`, and `remembers`: whether segments have a carried memory.

    Attributes:
        equilibrium: the `tfdeq.DEQLayer` that computes the states; None for an explicit network.
        explicit_steps: if > 0, its cell is applied this many times instead of solving.
        tokenizer: a `tfdeq.models.Tokenizer`, which presets save and `LanguageModel.generate` uses; None if
            the model reads only token ids.

    Args:
        vocabulary_size: V, token ids are 0 … V − 1.
        sequence_length: the longest T, for models without a carried memory.
        width: d, width of the embedding.
        state_width: width of the states that the readout reads. Default: width.
        tied_output: whether to compute logits with the transposed embedding instead of a separate
            matrix; states of another width than the embedding's are first mapped to it. Default False.
        cutoffs: for large vocabularies whose tokens are sorted by frequency: the tokens at which a new
            cluster of the `AdaptiveEmbedding` and the `AdaptiveSoftmax` begins. Default (): an ordinary
            embedding and an output matrix.
        cutoff_factor: how much narrower each cluster is than the one before. Default 4.
        input_dropout, output_dropout: rates for the embeddings and for the states that the readout
            reads, in [0, 1); one mask for all positions of an example. Default 0.
        loss_chunk: if > 0, losses (`targets`) are computed from the logits of this many positions at a
            time, and the gradient computes these logits again. A training step then needs only the
            memory of the states, and four products with the readout's matrix instead of three. Default
            0: all positions at once. Ignored with cutoffs.

    Raises:
        ValueError: for settings out of range.
    """

    equilibrium: DEQLayer | None = None
    explicit_steps: int = 0

    def __init__(
        self,
        vocabulary_size: int,
        sequence_length: int,
        width: int,
        state_width: int | None = None,
        tied_output: bool = False,
        cutoffs: Sequence[int] = (),
        cutoff_factor: int = 4,
        input_dropout: float = 0.0,
        output_dropout: float = 0.0,
        loss_chunk: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        require_integer("loss_chunk", loss_chunk, lowest=0)
        self.loss_chunk = loss_chunk
        for name, value in (
            ("vocabulary_size", vocabulary_size),
            ("sequence_length", sequence_length),
            ("width", width),
        ):
            require_positive_integer(name, value)
        self.vocabulary_size = vocabulary_size
        self.sequence_length = sequence_length
        self.width = width
        self.state_width = width if state_width is None else state_width
        self.tied_output = tied_output
        self.cutoffs = tuple(int(cutoff) for cutoff in cutoffs)
        self.cutoff_factor = cutoff_factor
        self.input_dropout = self._locked_dropout("input_dropout", input_dropout)
        self.output_dropout = self._locked_dropout("output_dropout", output_dropout)
        self.embedding = self._make_embedding()
        self.readout = self._make_readout()
        self.projection = None
        # With cutoffs the readout maps to the clusters' widths itself.
        if tied_output and not cutoffs and self.state_width != width:
            self.projection = self._linear(width, "projection")

    @property
    def remembers(self) -> bool:
        """Whether `call` takes and returns a carried memory of the preceding text."""
        return False

    def build(self, tokens_shape):
        self.embedding.build(tokens_shape)
        self.build_states((tokens_shape[0], tokens_shape[1], self.width))
        states = (tokens_shape[0], tokens_shape[1], self.state_width)
        for layer in (self.projection, self.readout):
            if layer is not None:
                layer.build(states)

    def build_states(self, shape):
        """Builds the layers between embedding and readout, for embeddings of a shape."""
        raise NotImplementedError(f"{type(self).__name__} must build what makes its states.")

    def embed(self, tokens, training=None):
        """Tokens [B, T] -> the input [B, T, d] of the cell or network."""
        length = tokens.shape[1]
        if not self.remembers and length is not None and length > self.sequence_length:
            raise ValueError(
                f"tokens must be at most {self.sequence_length} long, the model's sequence_length; "
                f"received shape {tuple(tokens.shape)}. Cut the text into windows."
            )
        return self.input_dropout(self.embedding(tokens), training=training)

    def initial_memory(self, batch_size: int) -> Any:
        """Returns the carried memory at the beginning of texts: a nest of zeros [B, …]."""
        raise ValueError(f"{type(self).__name__} {self.name!r} has no memory between segments.")

    def logits(self, z, training=None):
        """States [B, T, d] -> next-token logits [B, T, V] float32; log p with cutoffs."""
        h = self._read(z, training)
        logits = self.readout(h) if self.cutoffs else ops.matmul(h, self._output_matrix())
        return ops.cast(logits, "float32")

    def _output_matrix(self):
        """Returns the readout's matrix [d, V], for a model without cutoffs."""
        if self.readout is None:
            # The embeddings have unit scale; this gives the initial logits unit scale too.
            matrix = self.width**-0.5 * ops.transpose(self.embedding.embeddings)
        else:
            matrix = ops.convert_to_tensor(self.readout.kernel)
        return ops.cast(matrix, self.compute_dtype)

    def negative_log_likelihood(self, z, targets, training=None):
        """States [B, T, d], targets [B, T] -> −log p of each target, in nats, [B, T] float32."""
        if self.cutoffs:
            return ops.cast(self.readout.loss(self._read(z, training), targets), "float32")
        if not self.loss_chunk:
            return _nats(self.logits(z, training), targets)
        # Sums over chunks are computed in float32, products in the policy's compute dtype.
        wide = "float64" if self.compute_dtype == "float64" else "float32"

        def nats(rows, labels, matrix):
            short = (tf.cast(value, self.compute_dtype) for value in (rows, matrix))
            return _nats(tf.cast(tf.matmul(*short), wide), labels)

        h = self._read(z, training)
        labels = tf.reshape(targets, [-1])
        rows, matrix = (tf.cast(value, wide) for value in (h, self._output_matrix()))
        rows = tf.reshape(rows, [-1, h.shape[-1]])
        every = tf.ones_like(labels, tf.bool)
        losses = chunked(nats, every, rows, labels, [matrix], self.loss_chunk)
        return tf.cast(tf.reshape(losses, tf.shape(targets)), tf.float32)

    def _read(self, z, training):
        """Returns the states as the readout reads them."""
        h = self.output_dropout(ops.rms_normalization(z, epsilon=1e-5), training=training)
        return h if self.projection is None else self.projection(h)

    def _answer(self, z, targets, training):
        """Returns logits, or losses if there are targets."""
        if targets is None:
            return self.logits(z, training)
        return self.negative_log_likelihood(z, targets, training)

    def _answer_spec(self, tokens, targets):
        shape = tokens.shape if targets is not None else (*tokens.shape, self.vocabulary_size)
        return keras.KerasTensor(shape, dtype="float32")

    def _locked_dropout(self, name, rate):
        if not 0.0 <= float(rate) < 1.0:
            raise ValueError(f"{name} must be in [0, 1); received {rate!r}.")
        return keras.layers.Dropout(
            rate, noise_shape=(None, 1, None), dtype=self.dtype_policy, name=name
        )

    def _make_embedding(self):
        settings = {"dtype": self.dtype_policy, "name": "embedding"}
        if self.cutoffs:
            return AdaptiveEmbedding(
                self.vocabulary_size, self.width, self.cutoffs, self.cutoff_factor, **settings
            )
        initializer = keras.initializers.RandomNormal(stddev=1.0)
        return keras.layers.Embedding(self.vocabulary_size, self.width, initializer, **settings)

    def _make_readout(self):
        """Returns the layer that maps to logits; None if the embedding's matrix does."""
        settings = {"dtype": self.dtype_policy, "name": "readout"}
        if self.cutoffs:
            tied_to = self.embedding if self.tied_output else None
            return AdaptiveSoftmax(
                self.vocabulary_size, self.cutoffs, self.cutoff_factor, tied_to=tied_to, **settings
            )
        if self.tied_output:
            return None
        return self._linear(self.vocabulary_size, "readout")

    def _linear(self, units, name):
        initializer = keras.initializers.VarianceScaling(1.0, "fan_in", "untruncated_normal")
        return keras.layers.Dense(
            units,
            use_bias=False,
            kernel_initializer=initializer,
            dtype=self.dtype_policy,
            name=name,
        )

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "sequence_length": self.sequence_length,
            "width": self.width,
            "tied_output": self.tied_output,
            "cutoffs": list(self.cutoffs),
            "cutoff_factor": self.cutoff_factor,
            "input_dropout": self.input_dropout.rate,
            "output_dropout": self.output_dropout.rate,
            "loss_chunk": self.loss_chunk,
        }


def _nats(logits, targets):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=targets, logits=logits)
