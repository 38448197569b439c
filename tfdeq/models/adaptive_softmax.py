"""Next-token probabilities for large vocabularies; training computes only those that it needs."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from tfdeq.models.adaptive_embedding import AdaptiveEmbedding, cluster_bounds, cluster_widths
from tfdeq.models.row_chunks import chunked
from tfdeq.numerics.fixed_shapes import shapes_are_fixed
from tfdeq.solvers.solver import require_positive_integer


@keras.saving.register_keras_serializable(package="tfdeq")
class AdaptiveSoftmax(keras.layers.Layer):
    """log p(t) = log p(i) + log p(t | i), where i is the cluster of the token t.

    Tokens are sorted by frequency; 0 is the most frequent. The head is a softmax over the tokens below
    the first cutoff and one entry C_i for each later cluster. Cluster i holds the tokens from b_i to
    b_{i+1} − 1, where b = (0, *cutoffs, V), and has its own softmax:

        head: softmax of s h [E_0; C]ᵀ, cluster i: softmax of s_i (h P_iᵀ) E_iᵀ

    with E_i of width d_i = d / factor^i and P_i [d_i, d]. A call computes all probabilities. `loss`
    computes only the head and the cluster of each row's target, so it costs little more than the head
    if most targets are frequent.

    Without `tied_to`, E_i starts as N(0, 1 / d_i), P_i as N(0, 1 / d), and s = 1. With it, E_i and, if
    h has the embedding's width, P_i are those of the embedding, and s = d^-1/2: a token's logit is
    d^-1/2 h · embedding(t). In both cases, h of unit scale gives initial logits of unit scale. For an h
    of another width, all clusters, including the first, have their own P_i, and s_i = d_i^-1/2.

    There are no biases, and without cutoffs this is an ordinary softmax layer. Everything is computed
    in float32, or in float64 for float64 weights, under every dtype policy.

    Args:
        vocabulary_size: V.
        cutoffs: tokens at which a new cluster begins, increasing, in 1 … V − 1; (): one cluster.
        factor: how much narrower each cluster is than the one before, >= 1. Default 4.
        tied_to: an `AdaptiveEmbedding` with the same clusters and factor, whose matrices are used. They
            remain shared if both are saved and loaded in one model; a layer made by `from_config` alone
            has a new embedding. Default None.

    Call arguments:
        hidden: h [.., d], of unit scale; d divisible by factor^(number of cutoffs), unless tied.

    Returns:
        log-probabilities [.., V].

    Raises:
        ValueError: for sizes below 1, cutoffs that do not increase or lie outside 1 … V − 1, a width
            that is not divisible, or a tied_to that is not an embedding with these clusters.

    Source: Grave, Joulin, Cissé, Grangier, Jégou, arXiv:1609.04309, section 4; tied: Dai et al.,
        Transformer-XL, arXiv:1901.02860, and Baevski and Auli, arXiv:1809.10853, section 3.

    Example:
        >>> layer = AdaptiveSoftmax(vocabulary_size=100, cutoffs=[10, 30])
        >>> hidden = tf.random.normal([5, 16])
        >>> log_probabilities = layer(hidden)
        >>> log_probabilities.shape
        TensorShape([5, 100])
        >>> loss = layer.loss(hidden, [3, 12, 99, 0, 10])
        >>> bool(tf.reduce_all(tf.abs(loss[1] + log_probabilities[1, 12]) < 1e-5))
        True
    """

    def __init__(
        self,
        vocabulary_size: int,
        cutoffs: Sequence[int],
        factor: int = 4,
        tied_to: AdaptiveEmbedding | None = None,
        **kwargs,
    ):
        # A hidden state of a wider dtype must not be rounded.
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True
        self.bounds = cluster_bounds(vocabulary_size, cutoffs)
        require_positive_integer("factor", factor)
        self.vocabulary_size = int(vocabulary_size)
        self.cutoffs = self.bounds[1:-1]
        self.factor = int(factor)
        if tied_to is not None:
            self._require_same_clusters(tied_to)
        self.tied_to = tied_to

    def _require_same_clusters(self, embedding):
        if not isinstance(embedding, AdaptiveEmbedding):
            raise ValueError(
                f"tied_to must be an AdaptiveEmbedding or None; received {embedding!r}."
            )
        for name in ("vocabulary_size", "cutoffs", "factor"):
            own, other = getattr(self, name), getattr(embedding, name)
            if own != other:
                raise ValueError(
                    f"tied_to must have the same {name}; received {other} there and {own} here."
                )

    def build(self, hidden_shape):
        width = hidden_shape[-1]
        clusters = len(self.bounds) - 1
        if self.tied_to is None:
            widths = cluster_widths(width, clusters, self.factor)
            self._own_tables = [
                self._matrix(f"table_{i}", self.bounds[i + 1] - self.bounds[i], inner, inner**-0.5)
                for i, inner in enumerate(widths)
            ]
            self._scales = (1.0,) * clusters
        else:
            if not self.tied_to.built:
                self.tied_to.build()
            widths = self.tied_to.widths
            same = width == widths[0]
            self._scales = tuple((width if same else inner) ** -0.5 for inner in widths)
        # The projections that the embedding does not have.
        self._first_projected = self.tied_to is not None and width != widths[0]
        self._own_projections = []
        if self.tied_to is None or self._first_projected:
            first = 0 if self._first_projected else 1
            self._own_projections = [
                self._matrix(f"projection_{i}", widths[i], width, width**-0.5)
                for i in range(first, clusters)
            ]
        # More rows for the first table.
        self.cluster_table = None
        if clusters > 1:
            spread = widths[0] ** -0.5 if self.tied_to is None else 1.0
            self.cluster_table = self._matrix("cluster_table", clusters - 1, widths[0], spread)

    def _matrix(self, name, rows, columns, spread):
        # autocast=False, so that a model with a lower compute dtype does not round it.
        return self.add_weight(
            name=name,
            shape=(rows, columns),
            initializer=keras.initializers.RandomNormal(stddev=spread),
            autocast=False,
        )

    @property
    def tables(self):
        """E_i [tokens of the cluster, d_i], those of the embedding if tied."""
        return self._own_tables if self.tied_to is None else self.tied_to.tables

    @property
    def projections(self):
        """P_i [d_i, d] of all clusters, or only of those after the first."""
        return self._own_projections or ([] if self.tied_to is None else self.tied_to.projections)

    def call(self, hidden):
        hidden = self._wide(hidden)
        head = tf.nn.log_softmax(self._head_logits(hidden))
        first = self.bounds[1]
        parts = [head[..., :first]]
        for i in range(1, len(self.bounds) - 1):
            of_cluster = head[..., first + i - 1, None]
            parts.append(of_cluster + tf.nn.log_softmax(self._tail_logits(i, hidden)))
        return tf.concat(parts, axis=-1)

    def loss(self, hidden, targets):
        """Returns −log p(target), in nats, without the probabilities of other clusters' tokens.

        Each row is computed only in the cluster of its target. XLA does not support shapes that depend
        on values. Under XLA the rows are therefore computed in chunks of 64, in a loop with as many
        iterations as the cluster's rows need, and the loss can be differentiated only once.

        Args:
            hidden: [.., d], as for a call, for example [N, d].
            targets: [..] integers in 0 … V − 1. Other values raise an error on a CPU outside XLA, and
                give NaN elsewhere.

        Returns:
            [..], float32, or float64 for float64 weights.

        Raises:
            ValueError: for targets that are not integers or do not fit hidden.
        """
        hidden, targets = self._wide(hidden), tf.convert_to_tensor(targets)
        if not targets.dtype.is_integer or not hidden.shape[:-1].is_compatible_with(targets.shape):
            raise ValueError(
                "targets must be integers, one for each row of hidden; received "
                f"{targets.dtype.name} of shape {targets.shape} for hidden of shape {hidden.shape}."
            )
        if targets.dtype != tf.int64:
            targets = tf.cast(targets, tf.int32)  # 8-bit integers cannot hold the cutoffs
        if not self.built:
            self.build(tuple(hidden.shape))
        rows = tf.reshape(hidden, [-1, hidden.shape[-1]])
        return tf.reshape(self._row_loss(rows, tf.reshape(targets, [-1])), tf.shape(targets))

    def _row_loss(self, hidden, targets):
        """[N, d], [N] -> [N]."""
        first, places, members = self.bounds[1], targets, []
        add = _add_in_chunks if shapes_are_fixed() else _add_to_members
        for i in range(1, len(self.bounds) - 1):
            # The last cluster also takes targets beyond the vocabulary, and its softmax raises the
            # error.
            above = targets >= self.bounds[i]
            last = i == len(self.bounds) - 2
            members.append(above if last else above & (targets < self.bounds[i + 1]))
            places = tf.where(members[-1], tf.cast(first + i - 1, targets.dtype), places)
        loss = _cross_entropy(self._head_logits(hidden), places)
        for i, member in enumerate(members, start=1):

            def nats(hidden, labels, *weights, i=i):
                return _cross_entropy(self._logits(i, hidden, *weights), labels)

            labels = targets - self.bounds[i]
            loss = add(loss, nats, member, hidden, labels, self._weights(i))
        return loss

    def _head_logits(self, hidden):
        return self._logits(0, hidden, *self._weights(0))

    def _tail_logits(self, i, hidden):
        return self._logits(i, hidden, *self._weights(i))

    def _weights(self, i):
        """Returns the weights of cluster i: its table (for the head, with C appended), and P_i if any."""
        table = self._wide(self.tables[i])
        if i == 0 and self.cluster_table is not None:
            table = tf.concat([table, self._wide(self.cluster_table)], axis=0)
        if i == 0 and not self._first_projected:
            return [table]
        return [table, self._wide(self.projections[i - 1 + self._first_projected])]

    def _logits(self, i, hidden, table, projection=None):
        if projection is not None:
            hidden = tf.matmul(hidden, projection, transpose_b=True)
        if self._scales[i] != 1.0:
            hidden *= self._scales[i]
        return tf.matmul(hidden, table, transpose_b=True)

    @property
    def _wide_dtype(self):
        return "float64" if self.variable_dtype == "float64" else "float32"

    def _wide(self, values):
        return tf.cast(tf.convert_to_tensor(values), self._wide_dtype)

    def compute_output_spec(self, hidden):
        shape = (*hidden.shape[:-1], self.vocabulary_size)
        return keras.KerasTensor(shape, dtype=self._wide_dtype)

    def get_config(self):
        tied_to = self.tied_to and keras.saving.serialize_keras_object(self.tied_to)
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "cutoffs": list(self.cutoffs),
            "factor": self.factor,
            "tied_to": tied_to,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if isinstance(config.get("tied_to"), dict):
            config["tied_to"] = keras.saving.deserialize_keras_object(config["tied_to"])
        return cls(**config)


def _cross_entropy(logits, labels):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)


def _add_to_members(loss, function, member, hidden, labels, weights):
    """Returns loss [N] plus function(hidden, labels, *weights) for the members, which are gathered."""
    rows = tf.where(member)
    part = function(tf.gather_nd(hidden, rows), tf.gather_nd(labels, rows), *weights)
    return tf.tensor_scatter_nd_add(loss, rows, part)


def _add_in_chunks(loss, function, member, hidden, labels, weights):
    """The same with shapes that do not depend on the number of members."""
    return loss + chunked(function, member, hidden, labels, weights)
