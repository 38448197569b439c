import pytest

from tfdeq.training.equilibrium_watch import EquilibriumWatch
from tfdeq.training.schedule import StepSettings

SETTINGS = StepSettings(explicit_steps=0, max_steps=8, penalty_share=0.5)


def watch(action, jacobian_penalty=0.5):
    return EquilibriumWatch(
        {
            "equilibrium_watch": action,
            "watch_residual": 0.1,
            "max_steps": 8,
            "jacobian_penalty": jacobian_penalty,
        }
    )


def test_the_penalty_doubles_while_residuals_are_high_and_comes_back():
    found = watch("penalty")
    seen = []
    for residual in (0.05, 0.2, 0.3, 0.07, 0.04, None, 0.01, 0.01):
        found.observe(residual)
        seen.append(found.penalty_scale)
    assert seen == [1, 2, 4, 4, 2, 2, 1, 1]


def test_no_further_than_sixteen_times():
    found = watch("penalty")
    texts = [found.observe(1.0) for _ in range(6)]
    assert found.penalty_scale == 16
    assert texts[3] == "residual 1: the Jacobian penalty counts 16 times"
    assert texts[4:] == [None, None]
    assert found.applied(SETTINGS) == SETTINGS._replace(penalty_share=8.0)


def test_without_a_penalty_it_says_once_what_to_do():
    found = watch("penalty", jacobian_penalty=0.0)
    texts = [found.observe(residual) for residual in (0.05, 0.3, 0.9)]
    assert texts[::2] == [None, None]
    assert texts[1].startswith("residual 0.3, over --watch_residual=0.1")
    assert "Give --jacobian_penalty" in texts[1]
    assert found.applied(SETTINGS) == SETTINGS


def test_the_budget_grows_by_quarters_to_four_times_itself():
    found = watch("budget")
    found.observe(0.2)
    assert found.applied(SETTINGS) == SETTINGS._replace(max_steps=10)
    for _ in range(40):
        found.observe(0.2)
    assert found.applied(SETTINGS).max_steps == 32


@pytest.mark.parametrize("residual", [5.0, None])
def test_none_does_nothing(residual):
    found = watch("none")
    assert not found.active
    assert found.observe(residual) is None
    assert found.applied(SETTINGS) == SETTINGS
