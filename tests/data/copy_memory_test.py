import numpy as np
import pytest

from tfdeq.data.copy_memory import COPIED, VOCABULARY_SIZE, copy_memory_batches


def arrays(count=1, **options):
    options = {"memory_length": 5, "batch_size": 4, "seed": 3, **options}
    return list(copy_memory_batches(**options).take(count).as_numpy_iterator())


def test_the_task_as_it_is_defined():
    (tokens, targets), *_ = arrays(batch_size=64)
    assert tokens.shape == targets.shape == (64, 5 + 2 * COPIED)
    symbols = tokens[:, :10]
    assert set(np.unique(symbols)) == set(range(1, 9))
    np.testing.assert_array_equal(tokens[:, 10:14], 0)  # T - 1 blanks
    np.testing.assert_array_equal(tokens[:, 14:], 9)  # eleven times the request
    np.testing.assert_array_equal(targets[:, :15], 0)  # T + 10 blanks
    np.testing.assert_array_equal(targets[:, 15:], symbols)
    assert tokens.max() < VOCABULARY_SIZE


def test_a_step_is_what_it_is_wherever_one_starts_and_however_it_is_shared():
    whole = arrays(5)
    resumed = arrays(2, start_step=3)
    for one, other in zip(whole[3:], resumed, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(whole[0], whole[1])
    assert not np.array_equal(whole[0], arrays(seed=4)[0])
    parts = [arrays(shard=shard, shards=2)[0][0] for shard in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(parts), whole[0][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_length": 0}, "memory_length must be 1 or more; received 0"),
        ({"shard": 2, "shards": 2}, "received shard 2 of 2"),
        ({"shards": 3}, "shards must divide the batch of 4"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        arrays(**options)
