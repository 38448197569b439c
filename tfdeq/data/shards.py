"""Which rows of a batch are whose, when several workers share it."""


def shard_rows(batch_size: int, shard: int, shards: int) -> slice:
    """Returns the rows of the shard-th of so many equal parts of a batch.

    Args:
        batch_size: B, over all replicas. shard: in [0, shards). shards: parts; they divide B.

    Raises:
        ValueError: for an invalid shard, or parts that would not be equal.
    """
    if not 0 <= shard < shards or batch_size % shards:
        raise ValueError(
            f"shards must divide the batch of {batch_size}, with shard in [0, shards); received shard "
            f"{shard} of {shards}."
        )
    rows = batch_size // shards
    return slice(shard * rows, (shard + 1) * rows)
