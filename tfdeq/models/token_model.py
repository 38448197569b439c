"""What language models share: tokens in, logits or losses out, and a memory carried between segments."""

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
    """Embedding -> what a subclass makes of it -> norm -> next-token logits.

    A subclass has a `call`, and says by `remembers` whether segments have a carried memory.

    Attributes:
        equilibrium: the `tfdeq.DEQLayer` that makes the states; None: an explicit network does.
        explicit_steps: > 0: its cell is applied so often instead of solved for.
        tokenizer: a `tfdeq.models.Tokenizer`, which presets save and `LanguageModel.generate` uses; None:
            the model reads token ids alone.

    Args:
        vocabulary_size: V, token ids are 0 … V − 1.
        sequence_length: the longest T, for models that do not remember.
        width: d, of the embedding.
        state_width: of what the readout reads. Default: width.
        tied_output: logits from the transposed embedding instead of a matrix of their own; states of
            another width than the embedding's are mapped to it first. Default False.
        cutoffs: for large vocabularies, whose tokens are sorted by frequency: where a new cluster of
            the `AdaptiveEmbedding` and the `AdaptiveSoftmax` begins. Default (): an embedding and a
            matrix.
        cutoff_factor: how much narrower each cluster is than the one before. Default 4.
        input_dropout, output_dropout: rates on the embeddings and on what the readout reads, in
            [0, 1); one mask for all positions of an example. Default 0.
        loss_chunk: > 0: losses (`targets`) come from the logits of so many positions at a time, which
            the gradient computes once more: the memory of a training step is then that of the states,
            for four products with the readout's matrix instead of three. Default 0: of all positions
            at once. With cutoffs it is not looked at.

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
        """Whether `call` takes and returns a carried memory of the text before."""
        return False

    def build(self, tokens_shape):
        self.embedding.build(tokens_shape)
        self.build_states((tokens_shape[0], tokens_shape[1], self.width))
        states = (tokens_shape[0], tokens_shape[1], self.state_width)
        for layer in (self.projection, self.readout):
            if layer is not None:
                layer.build(states)

    def build_states(self, shape):
        """Builds what stands between embedding and readout, for embeddings of a shape."""
        raise NotImplementedError(f"{type(self).__name__} must build what makes its states.")

    def embed(self, tokens, training=None):
        """Tokens [B, T] -> what the cell, or network, reads [B, T, d]."""
        length = tokens.shape[1]
        if not self.remembers and length is not None and length > self.sequence_length:
            raise ValueError(
                f"tokens must be at most {self.sequence_length} long, the model's sequence_length; "
                f"received shape {tuple(tokens.shape)}. Cut the text into windows."
            )
        return self.input_dropout(self.embedding(tokens), training=training)

    def initial_memory(self, batch_size: int) -> Any:
        """Returns the carried memory of texts that nothing stands before: a nest of zeros [B, …]."""
        raise ValueError(f"{type(self).__name__} {self.name!r} has no memory between segments.")

    def logits(self, z, training=None):
        """States [B, T, d] -> next-token logits [B, T, V] float32; log p with cutoffs."""
        h = self._read(z, training)
        logits = self.readout(h) if self.cutoffs else ops.matmul(h, self._output_matrix())
        return ops.cast(logits, "float32")

    def _output_matrix(self):
        """[d, V], what the readout multiplies by where there are no cutoffs."""
        if self.readout is None:
            # Unit-scale embeddings, so that the first logits are of unit scale too.
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
        # Sums over chunks are made in float32, products in what the policy computes in.
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
        """What the readout multiplies."""
        h = self.output_dropout(ops.rms_normalization(z, epsilon=1e-5), training=training)
        return h if self.projection is None else self.projection(h)

    def _answer(self, z, targets, training):
        """Logits, or with targets their losses."""
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
        """What maps to logits; None where the embedding's matrix does."""
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
