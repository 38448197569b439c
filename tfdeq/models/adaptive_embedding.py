"""An embedding for large vocabularies, with wider vectors for frequent tokens."""

import itertools
from collections.abc import Sequence

import keras
import tensorflow as tf

from tfdeq.solvers.solver import require_positive_integer


@keras.saving.register_keras_serializable(package="tfdeq")
class AdaptiveEmbedding(keras.layers.Layer):
    """Token t of cluster i -> E_i[t − b_i] P_i, with E_i of width d_i = d / factor^i.

    Tokens are sorted by frequency; 0 is the most frequent. Cluster i holds the tokens from b_i to
    b_{i+1} − 1, where b = (0, *cutoffs, V). P_i is [d_i, d]; the first cluster has the full width and
    no projection P.

    E starts as N(0, 1) and P_i as N(0, 1 / d_i): a component of an output is a sum of d_i products of
    variance 1 / d_i, so the outputs of all clusters have unit variance, that of `LanguageModel`'s
    embedding. Without cutoffs it is the same as that embedding.

    Args:
        vocabulary_size: V.
        width: d, divisible by factor^(number of cutoffs).
        cutoffs: tokens at which a new cluster begins, increasing, in 1 … V − 1. Default (): one
            cluster.
        factor: how much narrower each cluster is than the one before, >= 1. Default 4.

    Call arguments:
        tokens: integers in 0 … V − 1, of any shape [..]. On a CPU outside XLA, other values raise an
            error, as in `tf.gather`.

    Returns:
        [.., d], in the layer's compute dtype.

    Raises:
        ValueError: for sizes below 1, cutoffs that do not increase or lie outside 1 … V − 1, or a
            width that is not divisible.

    Source: Baevski and Auli, arXiv:1809.10853, section 3.

    Example:
        >>> layer = AdaptiveEmbedding(vocabulary_size=100, width=16, cutoffs=[10, 30])
        >>> layer(tf.constant([[3, 12, 99]])).shape
        TensorShape([1, 3, 16])
        >>> [tuple(table.shape) for table in layer.tables]
        [(10, 16), (20, 4), (70, 1)]
    """

    def __init__(
        self,
        vocabulary_size: int,
        width: int,
        cutoffs: Sequence[int] = (),
        factor: int = 4,
        **kwargs,
    ):
        # Tokens must not be rounded, and a table need not be rounded to gather its rows.
        super().__init__(autocast=False, **kwargs)
        self.bounds = cluster_bounds(vocabulary_size, cutoffs)
        self.widths = cluster_widths(width, len(self.bounds) - 1, factor)
        self.vocabulary_size = int(vocabulary_size)
        self.width = int(width)
        self.cutoffs = self.bounds[1:-1]
        self.factor = int(factor)

    def build(self, tokens_shape=None):
        self.tables = [
            self.add_weight(
                name=f"table_{i}",
                shape=(self.bounds[i + 1] - self.bounds[i], width),
                initializer=keras.initializers.RandomNormal(stddev=1.0),
                autocast=False,
            )
            for i, width in enumerate(self.widths)
        ]
        # For the clusters after the first; the full width needs no projection.
        self.projections = [
            self.add_weight(
                name=f"projection_{i}",
                shape=(width, self.width),
                initializer=keras.initializers.RandomNormal(stddev=width**-0.5),
                autocast=False,
            )
            for i, width in enumerate(self.widths[1:], start=1)
        ]

    def call(self, tokens):
        tokens = tf.convert_to_tensor(tokens)
        if tokens.dtype != tf.int64:  # floats by default; 8-bit integers cannot hold the cutoffs
            tokens = tf.cast(tokens, tf.int32)
        tail = (tokens >= self.bounds[1]) & (tokens < self.vocabulary_size)
        # An invalid token remains an index into the first table, where gather raises an error.
        result = self._rows(self.tables[0], tf.where(tail, 0, tokens))
        for i, projection in enumerate(self.projections, start=1):
            member = (tokens >= self.bounds[i]) & (tokens < self.bounds[i + 1])
            rows = self._rows(self.tables[i], tf.where(member, tokens - self.bounds[i], 0))
            # Computed for all tokens, so that the shape is fixed; this costs d_i / d of a dense
            # layer.
            projected = tf.tensordot(rows, tf.cast(projection, self.compute_dtype), 1)
            result = tf.where(member[..., None], projected, result)
        return result

    def _rows(self, table, indices):
        return tf.cast(tf.gather(tf.convert_to_tensor(table), indices), self.compute_dtype)

    def compute_output_spec(self, tokens):
        return keras.KerasTensor((*tokens.shape, self.width), dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "width": self.width,
            "cutoffs": list(self.cutoffs),
            "factor": self.factor,
        }


def cluster_bounds(vocabulary_size: int, cutoffs: Sequence[int]) -> tuple[int, ...]:
    """Returns (0, *cutoffs, vocabulary_size): cluster i holds the tokens from entry i up to the next.

    Args:
        vocabulary_size: V >= 1.
        cutoffs: increasing integers in 1 … V − 1.

    Raises:
        ValueError: for anything else.

    Example:
        >>> cluster_bounds(100, [10, 30])
        (0, 10, 30, 100)
    """
    require_positive_integer("vocabulary_size", vocabulary_size)
    try:
        cutoffs = tuple(cutoffs)
    except TypeError:
        raise ValueError(
            f"cutoffs must be a sequence of integers; received {cutoffs!r}. For one cutoff write "
            "[cutoff], for none ()."
        ) from None
    for cutoff in cutoffs:
        require_positive_integer("each of cutoffs", cutoff)
    bounds = (0, *(int(cutoff) for cutoff in cutoffs), int(vocabulary_size))
    if any(left >= right for left, right in itertools.pairwise(cutoffs)):
        raise ValueError(f"cutoffs must increase; received {cutoffs}. Sort them, without repeats.")
    if cutoffs and bounds[-2] >= vocabulary_size:
        raise ValueError(
            f"cutoffs must be below vocabulary_size, {vocabulary_size}; received {cutoffs}. Leave out "
            "those beyond: the last cluster ends with the vocabulary."
        )
    return bounds


def cluster_widths(width: int, clusters: int, factor: int) -> tuple[int, ...]:
    """Returns the clusters' widths: width / factor^i for i = 0, 1, ….

    Args:
        width: width of the first cluster, divisible by factor^(clusters − 1).
        clusters: number of clusters.
        factor: >= 1.

    Raises:
        ValueError: for anything else.

    Example:
        >>> cluster_widths(32, 3, 4)
        (32, 8, 2)
    """
    require_positive_integer("width", width)
    require_positive_integer("factor", factor)
    divisor = factor ** (clusters - 1)
    if width % divisor:
        raise ValueError(
            f"width must be divisible by factor^(number of cutoffs), {factor}^{clusters - 1} = "
            f"{divisor}; received width {width}. Take a multiple, a smaller factor or fewer cutoffs."
        )
    return tuple(int(width) // factor**i for i in range(clusters))
