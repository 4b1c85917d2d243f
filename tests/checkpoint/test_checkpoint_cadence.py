"""Promise: saving costs at most 1 % of the time and at most ten minutes of work are at risk, whatever a save costs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.checkpoint.cadence import (
    FIRST_SAVE_S,
    MOST_AT_RISK_S,
    OVERHEAD_FRACTION,
    Experience,
    interval_s,
    is_due,
    pays_before_risk,
    young_daly_s,
)

seconds = st.floats(0.001, 1e6)
experiences = st.builds(Experience, save_s=st.floats(0.001, 1e4), trained_s=st.floats(0, 1e7), deaths=st.integers(0, 1000))

HOUR = 3600.0


@given(experiences)
def test_never_more_than_ten_minutes_of_work_at_risk(experience: Experience) -> None:
    assert 0 < interval_s(experience) <= MOST_AT_RISK_S


@given(experiences)
def test_saving_takes_at_most_one_percent_unless_ten_minutes_of_work_are_at_stake(experience: Experience) -> None:
    interval = interval_s(experience)
    assert experience.save_s is not None
    overhead = experience.save_s / (interval + experience.save_s)
    assert overhead <= OVERHEAD_FRACTION * 1.000001 or interval == MOST_AT_RISK_S


@given(st.floats(0.01, 6), st.floats(HOUR, 100 * HOUR))
def test_the_interval_is_about_the_one_that_loses_least(save_s: float, mean_life_s: float) -> None:
    """Against the expected loss itself: saves made, and half an interval of work (and a save) for each death."""

    def lost(interval: float) -> float:
        return save_s / interval + (interval / 2 + save_s) / mean_life_s

    best = young_daly_s(save_s, mean_life_s)
    assert lost(best) <= 1.02 * min(lost(best * factor) for factor in (0.5, 0.7, 0.9, 1.1, 1.5, 2.0))


@given(st.floats(0.01, 1e5), st.floats(1, 1e5))
def test_the_estimate_is_never_senseless(save_s: float, mean_life_s: float) -> None:
    assert math.isfinite(young_daly_s(save_s, mean_life_s))
    assert young_daly_s(save_s, mean_life_s) > 0


@given(experiences)
def test_more_deaths_never_mean_fewer_checkpoints(experience: Experience) -> None:
    worse = Experience(experience.save_s, experience.trained_s, experience.deaths + 1)
    assert interval_s(worse) <= interval_s(experience) * 1.000001


def test_a_machine_that_dies_every_hour_is_saved_more_often_than_a_calm_one() -> None:
    """A save of half a second: every two minutes at first; every minute where death is near; rarely after calm weeks."""
    fresh = interval_s(Experience(save_s=0.5, trained_s=0, deaths=0))
    deadly = interval_s(Experience(save_s=0.5, trained_s=10 * HOUR, deaths=10))
    calm = interval_s(Experience(save_s=0.5, trained_s=300 * HOUR, deaths=0))
    assert deadly < fresh < calm
    assert 100 < fresh < 200
    assert 49.5 <= deadly < 80
    assert calm == MOST_AT_RISK_S


def test_the_first_save_comes_early_to_learn_its_cost() -> None:
    assert interval_s(Experience(save_s=None, trained_s=0, deaths=0)) == FIRST_SAVE_S


@given(st.floats(1, 1e5), experiences)
def test_the_users_own_choice_stands_as_it_is(every_s: float, experience: Experience) -> None:
    assert interval_s(experience, every_s) == every_s
    assert is_due(1000 + every_s * 1.001, 1000.0, experience, every_s)
    assert not is_due(1000 + every_s * 0.9, 1000.0, experience, every_s)


def test_an_evening_of_training() -> None:
    """Nothing after a second; a first save after a minute; the next one two minutes and a half later and not before."""
    new = Experience(save_s=None, trained_s=0, deaths=0)
    assert not is_due(1.0, 0.0, new)
    assert is_due(60.0, 0.0, new)
    measured = Experience(save_s=0.5, trained_s=60.0, deaths=0)
    assert not is_due(200.0, 60.5, measured)
    assert is_due(210.0, 60.5, measured)


@given(experiences, st.floats(0, 700), st.floats(0, 100))
def test_a_slow_micro_batch_does_not_overrun_the_ten_minutes(experience: Experience, unsaved_s: float, chance_s: float) -> None:
    if not is_due(1e6 + unsaved_s, 1e6, experience, until_next_chance_s=chance_s):
        assert unsaved_s + chance_s <= MOST_AT_RISK_S + 0.001


@pytest.mark.parametrize(
    ("unsaved_s", "chance", "pays"), [(300, 0.05, True), (30, 0.05, False), (30, 1.0, True), (0, 1.0, False)]
)
def test_before_a_risky_moment_it_is_saved_if_the_work_is_worth_it(unsaved_s: float, chance: float, pays: bool) -> None:
    """A save of two seconds: five minutes of work at a risk of one in twenty are worth it, half a minute is not."""
    assert pays_before_risk(unsaved_s, 0.0, Experience(save_s=2.0, trained_s=HOUR, deaths=0), chance) is pays
