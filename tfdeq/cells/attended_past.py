"""Keys and values of earlier positions, to which attention continues to attend."""

from typing import Any

from keras import ops


def empty_past(like: Any, places: int, heads: int, size: int) -> dict[str, Any]:
    """Returns the past at the beginning of a text.

    Args:
        like: [B] floating, with the past's dtype. places: number of places in the past.

    Returns:
        A dict. key, value: [B, heads, places, size], zeros. length: [B] int32, how many places are
        filled, counted from the end.
    """
    zeros = ops.zeros_like(like)
    filled = ops.tile(zeros[:, None, None, None], (1, heads, places, size))
    return {"key": filled, "value": filled, "length": ops.cast(zeros, "int32")}


def joined_past(past: dict[str, Any], own: dict[str, Any], kept: int, lengths: Any = None) -> Any:
    """Returns the past of the segment that follows this one.

    Args:
        past: past of this segment, from this function or `empty_past`.
        own: keys and values of the segment's T positions, [B, heads, T, size].
        kept: number of places in the result.
        lengths: [B] int32, 0 … T, number of positions in each example; None: T.
    """
    joined = {name: ops.concatenate([past[name], own[name]], axis=2) for name in own}
    if lengths is None:
        new = ops.shape(own["key"])[2]
        first = ops.shape(joined["key"])[2] - kept
        last = {name: joined[name][:, :, first:] for name in own}
    else:
        new = ops.cast(lengths, "int32")
        places = (new + past["key"].shape[2] - kept)[:, None] + ops.arange(kept)
        places = places[:, None, :, None]
        last = {name: ops.take_along_axis(joined[name], places, axis=2) for name in own}
    return {**last, "length": ops.minimum(past["length"] + new, kept)}


def attend_with_past(query, key, value, past, past_bias, own_bias):
    """Attention of one position per sample to its past and itself.

    Args:
        query, key, value: [B, heads, size], those of the position.
        past: a dict of key and value [B, heads, P, size].
        past_bias: [B, heads, P], own_bias: [1, heads, 1]: added to the logits.

    Returns:
        [B, heads, size].
    """
    query *= query.shape[-1] ** -0.5
    # The past is not concatenated with the position's own key, which would copy it in every
    # application.
    logits = ops.squeeze(ops.matmul(past["key"], query[..., None]), -1) + past_bias
    own = ops.sum(query * key, axis=-1, keepdims=True) + own_bias
    weights = ops.softmax(ops.concatenate([own, logits], axis=-1), axis=-1)
    attended = ops.squeeze(ops.matmul(weights[:, :, None, 1:], past["value"]), -2)
    return attended + weights[..., :1] * value
