"""Draws tokens from logits, with a temperature, top-k and top-p for each sample."""

import tensorflow as tf


def sample(
    logits: tf.Tensor,
    uniform: tf.Tensor,
    temperature: tf.Tensor,
    top_k: tf.Tensor,
    top_p: tf.Tensor,
) -> tf.Tensor:
    """Returns one token per sample, by inversion of the distribution function.

    The distribution is p = softmax(logits / temperature), restricted to the top_k most likely tokens
    and renormalised, then to the fewest most likely of these whose probabilities reach top_p and
    renormalised again. For equal logits, the smaller token comes first.

    Args:
        logits: [B, V].
        uniform: [B] in [0, 1), the draws.
        temperature: [B]; not > 0: the most likely token.
        top_k: [B] int32; <= 0: all.
        top_p: [B]; not in (0, 1): all.

    Returns:
        [B] int32.

    Source: top-p: Holtzman et al., The Curious Case of Neural Text Degeneration, arXiv:1904.09751.

    Example:
        >>> logits = tf.math.log([[0.1, 0.6, 0.3]])
        >>> options = tf.constant([1.0]), tf.constant([2]), tf.constant([0.0])
        >>> [int(sample(logits, tf.constant([u]), *options)[0]) for u in (0.0, 0.6, 0.7)]
        [1, 1, 2]
    """
    likeliest = tf.argmax(logits, axis=-1, output_type=tf.int32)
    warm = temperature > 0
    # Sorting a vocabulary costs more than the rest, so greedy batches skip it.
    return tf.cond(
        tf.reduce_any(warm),
        lambda: tf.where(warm, _draw(logits, uniform, temperature, top_k, top_p), likeliest),
        lambda: likeliest,
    )


def _draw(logits, uniform, temperature, top_k, top_p):
    size = logits.shape[-1]
    # Relative to the maximum, so that a small temperature cannot overflow.
    logits -= tf.reduce_max(logits, axis=-1, keepdims=True)
    logits /= tf.where(temperature > 0, temperature, 1.0)[:, None]
    ordered, tokens = tf.math.top_k(logits, size, index_type=tf.int32)
    rank = tf.range(size)[None]
    p = tf.nn.softmax(tf.where(rank < tf.where(top_k > 0, top_k, size)[:, None], ordered, -1e9))
    bound = tf.where((top_p > 0) & (top_p < 1), top_p, 2.0)[:, None]
    p = tf.where(tf.cumsum(p, axis=-1, exclusive=True) < bound, p, 0.0)
    reached = tf.cumsum(p, axis=-1)
    place = tf.reduce_sum(tf.cast(reached <= uniform[:, None] * reached[:, -1:], tf.int32), axis=-1)
    # Rounding may lead past the last token that can be drawn.
    place = tf.minimum(place, tf.reduce_sum(tf.cast(p > 0, tf.int32), axis=-1) - 1)
    return tf.gather(tokens, place, batch_dims=1)
