import pytest

from tests.support.trainer_cases import CONFIG
from tfdeq.training import schedule


def test_explicit_steps_follow_depth_and_the_shallow_start():
    assert [schedule.explicit_steps_at(step, CONFIG) for step in (0, 5, 6, 11)] == [2, 2, 0, 0]
    assert schedule.explicit_steps_at(11, {**CONFIG, "depth": 4}) == 4
    assert schedule.explicit_steps_at(0, {**CONFIG, "shallow_share": 0.0}) == 0
    assert schedule.takeover_step(CONFIG) == 6
    # It is not repeated in a run that is made longer.
    longer = {**CONFIG, "train_steps": 40, "shortest_train_steps": 12}
    assert schedule.takeover_step(longer) == 6


def test_the_budget_grows_from_the_takeover_to_the_end():
    budgets = [schedule.max_steps_at(step, CONFIG) for step in range(12)]
    assert budgets == [4, 4, 4, 4, 4, 4, 4, 4, 5, 5, 6, 6]
    assert schedule.max_steps_at(11, {**CONFIG, "training_max_steps": 9}) == 9
    longer = {**CONFIG, "training_max_steps_end": 9}
    assert [schedule.max_steps_at(step, longer) for step in (3, 11)] == [4, 9]


def test_a_sampled_budget_lies_around_it_and_follows_from_seed_and_step():
    config = {**CONFIG, "sampled_depth": 2, "seed": 3, "train_steps": 400, "shallow_share": 0.0}
    budgets = [schedule.max_steps_at(step, config) for step in range(100)]
    assert set(budgets) == {2, 3, 4, 5, 6}
    assert budgets == [schedule.max_steps_at(step, config) for step in range(100)]
    assert budgets != [schedule.max_steps_at(step, {**config, "seed": 4}) for step in range(100)]
    assert schedule.largest_budget(config) == 8  # the budget grows to 6
    # A budget is never below one step.
    assert min(schedule.max_steps_at(s, {**config, "sampled_depth": 50}) for s in range(100)) == 1


def test_the_penalty_falls_evenly():
    shares = [schedule.penalty_share_at(step, CONFIG) for step in (0, 4, 8)]
    assert shares == pytest.approx([1.0, 0.75, 0.5])
    assert schedule.penalty_share_at(11, {**CONFIG, "jacobian_penalty_end": 1.0}) == 1.0


def test_settings_are_these_three():
    assert schedule.settings_at(8, CONFIG) == schedule.StepSettings(0, 5, pytest.approx(0.5))
