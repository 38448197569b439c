import pytest

from tfdeq.data.shards import shard_rows


def test_the_parts_are_the_whole_in_order():
    batch = list(range(12))
    parts = [batch[shard_rows(12, shard, 3)] for shard in range(3)]
    assert parts == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert batch[shard_rows(12, 0, 1)] == batch


@pytest.mark.parametrize(("shard", "shards"), [(2, 2), (-1, 2), (0, 5), (0, 0)])
def test_what_is_no_part_is_refused(shard, shards):
    with pytest.raises(ValueError, match=f"batch of 12.*received shard {shard} of {shards}"):
        shard_rows(12, shard, shards)
