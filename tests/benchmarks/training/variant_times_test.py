from benchmarks.training.variant_times import phases


def test_the_timed_phases_make_up_the_whole_schedule():
    config = {
        "depth": 0,
        "training_max_steps": 4,
        "max_steps": 8,
        "shallow_share": 0.2,
        "shallow_steps": 1,
    }
    assert phases(config) == [(1, 4, 0.2), (0, 4, 0.4), (0, 8, 0.4)]
    assert phases({**config, "depth": 4}) == [(4, 8, 1.0)]
    # The budget of a schedule that would shrink stays constant.
    assert phases({**config, "max_steps": 3})[1:] == [(0, 4, 0.4), (0, 4, 0.4)]
    # The final budget may have its own flag; without shallow_share there is no shallow start.
    longer = {**config, "training_max_steps_end": 6, "shallow_share": 0.0}
    assert phases(longer) == [(0, 4, 0.5), (0, 6, 0.5)]
