"""Promise: saving costs at most 1 % of the time and at most ten minutes of work are at risk, whatever a save costs."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from memsup.cadence import (
    FIRST_SAVE_S,
    MOST_AT_RISK_S,
    OVERHEAD_FRACTION,
    Experience,
    interval_s,
    is_due,
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
