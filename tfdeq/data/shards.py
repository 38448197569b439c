"""The division of a batch's rows among workers."""


def shard_rows(batch_size: int, shard: int, shards: int) -> slice:
    """Returns the rows of the shard-th of `shards` equal parts of a batch.

    Args:
        batch_size: B, over all replicas. shard: in [0, shards). shards: number of parts; must divide B.

    Raises:
        ValueError: for an invalid shard, or if shards does not divide B.
    """
    if not 0 <= shard < shards or batch_size % shards:
        raise ValueError(
            f"shards must divide the batch of {batch_size}, with shard in [0, shards); received shard "
            f"{shard} of {shards}."
        )
    rows = batch_size // shards
    return slice(shard * rows, (shard + 1) * rows)
