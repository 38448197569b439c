"""Tests of tfdeq.steadiness.training_control."""

from tfdeq.steadiness.training_control import TrainingControl


def test_budget_is_left_alone_until_it_is_active_and_then_rounded_up():
    control = TrainingControl()
    control.budget_scale.value = 1.25
    assert control.budget(None, 8) is None
    assert control.budget(5, 8) == 5
    control.active = True
    assert int(control.budget(None, 8)) == 10
    assert int(control.budget(5, 8)) == 7


def test_penalty_is_raised_above_its_usual_scale():
    for usual in (0.0, 1.0):
        control = TrainingControl(usual)
        assert not bool(control.is_raised())
        control.penalty_scale.value = usual + 1.0
        assert bool(control.is_raised())
