"""The heat ladder: computes as much as the cooling carries, holds only when that did not help, and tells somebody in time.

Against a thermal model with a slow cooler, a fast die, a fan, a late and rounded sensor, and rising ambient.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from memsup.supervisor.decide.heat import (
    CAP_AFTER_S,
    HOLD_AFTER_S,
    LEAST_CAP,
    LEAST_DUTY,
    LEAST_HOLD_S,
    SLOWED_CALM_S,
    SLOWED_DUTY,
    TELL_BLIND_S,
    TELL_HOLD_S,
    TELL_SLOW_S,
    HeatControl,
    HeatDecision,
    HeatSource,
)
from memsup.supervisor.decide.thresholds import heat_limits


@dataclass(frozen=True)
class Cooling:
    """`rise_c` is what the whole load adds to `ambient_c` in the end, `die_fraction` of it within `die_s`."""

    ambient_c: float = 30.0
    ambient_c_per_h: float = 0.0
    rise_c: float = 65.0
    idle_c: float = 8.0
    die_fraction: float = 0.15
    die_s: float = 2.0
    cooler_s: float = 90.0
    fan: float = 0.15
    """Part of the heat that a faster fan carries away between 60 and 90 °C."""
    late_s: int = 1
    noise_c: float = 0.3
    step_c: float = 1.0
    """The sensor's resolution."""


Control = Callable[[int, float, float], float]
"""(second, temperature as seen, heat now) → duty."""


def simulate(
    cooling: Cooling, seconds: int, control: Control, load: Callable[[int], float] = lambda _: 1.0
) -> list[tuple[float, float]]:
    """The true temperature and the duty of every second."""
    rng = random.Random(4711)
    cooler = cooling.ambient_c + cooling.idle_c * (1 - cooling.die_fraction)
    die = cooling.idle_c * cooling.die_fraction
    pending = [1.0] * (cooling.late_s + 1)
    night = []
    for second in range(seconds):
        celsius = cooler + die
        seen = round((celsius + rng.gauss(0, cooling.noise_c)) / cooling.step_c) * cooling.step_c
        heat = cooling.idle_c + cooling.rise_c * pending[0] * load(second)
        pending.append(control(second, seen, heat))
        duty = pending.pop(0)
        heat = cooling.idle_c + cooling.rise_c * duty * load(second)
        heat *= 1 - cooling.fan * min(1.0, max(0.0, (celsius - 60) / 30))
        ambient = cooling.ambient_c + cooling.ambient_c_per_h * second / 3600
        for _ in range(4):
            cooler += 0.25 / cooling.cooler_s * (ambient + heat * (1 - cooling.die_fraction) - cooler)
            die += 0.25 / cooling.die_s * (heat * cooling.die_fraction - die)
        night.append((celsius, duty))
    return night


def controlled(control: HeatControl, slowdown_c: float, decisions: list[HeatDecision] | None = None) -> Control:
    def step(second: int, seen_c: float, heat: float) -> float:
        source = HeatSource(name="GPU 0", temperature_c=seen_c, limits=heat_limits(slowdown_c), heat=heat)
        decision = control.step(float(second), [source])
        if decisions is not None:
            decisions.append(decision)
        return 0.0 if decision.hold else decision.duty_fraction

    return step


def best_constant_duty(cooling: Cooling, seconds: int, limit_c: float) -> float:
    """The largest fixed duty that never passes `limit_c`, knowing the whole night beforehand."""

    def hottest(duty: float) -> float:
        return max(celsius for celsius, _ in simulate(cooling, seconds, lambda *_: duty))

    if hottest(1.0) <= limit_c:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (middle, high) if hottest(middle) <= limit_c else (low, middle)
    return low


def mean_duty(night: Sequence[tuple[float, float]]) -> float:
    return sum(duty for _, duty in night) / len(night)


COOLINGS = st.builds(
    Cooling,
    ambient_c=st.floats(18, 36),
    ambient_c_per_h=st.floats(0, 5),
    rise_c=st.floats(30, 90),
    die_fraction=st.floats(0.05, 0.3),
    die_s=st.floats(1, 6),
    cooler_s=st.floats(30, 400),
    fan=st.floats(0, 0.3),
    late_s=st.integers(0, 3),
    noise_c=st.floats(0, 0.6),
    step_c=st.sampled_from([0.125, 0.5, 1.0]),
)


def _feasible(cooling: Cooling, slowdown_c: float) -> bool:
    """Idling is cool enough, and the whole load does not need more than about twice the cooling there is."""
    pace = slowdown_c - 8
    idle = cooling.ambient_c + cooling.ambient_c_per_h + cooling.idle_c
    return idle + 30 < pace and cooling.ambient_c + cooling.idle_c + cooling.rise_c < pace + 35


# -- pace --------------------------------------------------------------------------------------------------------------


def test_a_cool_machine_is_never_slowed() -> None:
    decisions: list[HeatDecision] = []
    simulate(Cooling(rise_c=45), 3600, controlled(HeatControl(), 95, decisions))
    assert all(decision.duty_fraction == 1.0 and not decision.hold and not decision.reason for decision in decisions)


@settings(max_examples=25, suppress_health_check=[HealthCheck.filter_too_much])
@given(COOLINGS, st.sampled_from([84.0, 89.0, 93.0, 97.0]))
def test_every_cooler_is_kept_within_two_degrees_at_nine_tenths_of_the_best_speed(cooling: Cooling, slowdown_c: float) -> None:
    """Never more than 2 °C above the pace level, so never a hold, at ≥ 90 % of the best constant duty found by search."""
    assume(_feasible(cooling, slowdown_c))
    seconds = 3600
    decisions: list[HeatDecision] = []
    night = simulate(cooling, seconds, controlled(HeatControl(), slowdown_c, decisions))
    assert max(celsius for celsius, _ in night) <= slowdown_c - 8 + 2
    assert not any(decision.hold for decision in decisions)
    assert mean_duty(night) >= 0.9 * best_constant_duty(cooling, seconds, slowdown_c - 8 + 2)


def test_the_duty_is_smooth_once_found() -> None:
    """No hunting: after half an hour the duty stays within a few per cent, and orders are rare."""
    decisions: list[HeatDecision] = []
    simulate(Cooling(ambient_c=33), 5400, controlled(HeatControl(), 89, decisions))
    settled = [decision.duty_fraction for decision in decisions[1800:]]
    assert min(settled) > 0.5
    assert max(settled) - min(settled) <= 0.15
    orders = sum(before != after for before, after in itertools.pairwise(settled))
    assert orders <= len(settled) / 10


def test_a_night_that_cools_down_brings_the_speed_back() -> None:
    warm = Cooling(ambient_c=36, ambient_c_per_h=-8, rise_c=62)
    night = simulate(warm, 3 * 3600, controlled(HeatControl(), 93))
    assert mean_duty(night[600:1800]) < 0.95
    assert mean_duty(night[-600:]) == 1.0


@pytest.mark.parametrize("low", [0.05, 0.2])
def test_waiting_for_data_does_not_wind_the_duty_up(low: float) -> None:
    """Two minutes in ten with hardly any load (a slow disk): the load that comes back meets the duty found before."""
    night = simulate(
        Cooling(ambient_c=33, rise_c=70),
        2 * 3600,
        controlled(HeatControl(), 89),
        load=lambda second: low if second % 600 >= 480 else 1.0,
    )
    assert max(celsius for celsius, _ in night) <= 89 - 8 + 2


@settings(max_examples=15, suppress_health_check=[HealthCheck.filter_too_much])
@given(COOLINGS, st.floats(0.4, 0.7), st.integers(60, 300))
def test_a_load_that_doubles_at_once_never_reaches_the_slowdown(cooling: Cooling, low: float, length_s: int) -> None:
    """Half the load rightly raises the duty; when the whole load is back, the device's own limit stays out of reach."""
    cooling = replace(cooling, die_fraction=min(cooling.die_fraction, 0.2), rise_c=min(cooling.rise_c, 70))
    assume(_feasible(cooling, 93))
    night = simulate(cooling, 3600, controlled(HeatControl(), 93), load=lambda second: low if second // length_s % 2 else 1.0)
    assert max(celsius for celsius, _ in night) < 93


def test_a_supervisor_that_starts_beside_a_hot_worker_does_not_overshoot() -> None:
    """It does not know how the temperature came about, and begins low."""
    assert HeatControl().step(0, [source(84)]).duty_fraction <= 0.5


def test_the_hottest_of_several_decides() -> None:
    control = HeatControl()
    for second in range(300):
        decision = control.step(second, [source(60), source(88, name="coretemp Package id 0")])
    assert decision.duty_fraction < 0.5
    assert "coretemp" in decision.reason


# -- hold --------------------------------------------------------------------------------------------------------------


def source(celsius: float | None, *, name: str = "GPU 0", slowdown: float | None = 93, **more: object) -> HeatSource:
    return replace(HeatSource(name=name, temperature_c=celsius, limits=heat_limits(slowdown)), **more)  # type: ignore[arg-type]


def feed(control: HeatControl, seconds: range, celsius: float | None, **more: object) -> list[HeatDecision]:
    return [control.step(float(second), [source(celsius, **more)]) for second in seconds]


def test_hold_comes_after_ten_seconds_above_its_level_and_not_before() -> None:
    """Pace 85, hold 88: nine seconds of 89 are a spike."""
    control = HeatControl()
    feed(control, range(20), 80)
    assert not any(decision.hold for decision in feed(control, range(20, 20 + int(HOLD_AFTER_S)), 89))
    assert not any(decision.hold for decision in feed(control, range(30, 31), 87))
    assert not any(decision.hold for decision in feed(control, range(31, 31 + int(HOLD_AFTER_S)), 89))
    assert feed(control, range(41, 42), 89)[-1].hold


def test_at_the_slowdown_itself_nobody_waits_ten_seconds() -> None:
    assert feed(HeatControl(), range(1), 93)[0].hold


def test_resume_comes_below_its_level_after_at_least_a_minute_and_slower_than_before() -> None:
    control = HeatControl()
    feed(control, range(20), 94)
    cold_at_once = feed(control, range(20, 59), 60)
    assert all(decision.hold for decision in cold_at_once)
    assert cold_at_once[-1].forecast_s == pytest.approx(LEAST_HOLD_S - 58)
    resumed = feed(control, range(59, 70), 60)[-1]
    assert not resumed.hold
    assert resumed.duty_fraction < 0.7
    assert not feed(control, range(70, 100), 82)[-1].hold


def test_between_resume_and_hold_level_it_stays_as_it_is() -> None:
    """No flapping: 80 °C neither ends a hold (78) nor begins one (88)."""
    held, free = HeatControl(), HeatControl()
    feed(held, range(20), 94)
    assert all(decision.hold for decision in feed(held, range(20, 500), 80))
    assert not any(decision.hold for decision in feed(free, range(500), 80))


def test_cooling_is_forecast_from_its_own_slope() -> None:
    control = HeatControl()
    feed(control, range(10), 94)
    for second in range(10, 90):
        decision = control.step(second, [source(94 - 0.1 * (second - 10))])
    assert decision.forecast_s is not None
    assert 70 <= decision.forecast_s <= 100  # 8 °C at 0.1 °C/s


def test_warming_up_is_forecast_as_well() -> None:
    control = HeatControl()
    for second in range(60):
        decision = control.step(second, [source(50 + 0.2 * second)])
    assert decision.forecast_s is not None
    assert 110 <= decision.forecast_s <= 160  # 26 °C at 0.2 °C/s


def test_a_hold_has_a_deadline_after_which_somebody_is_told_once() -> None:
    control = HeatControl()
    feed(control, range(20), 94)
    told = [decision.tell for decision in feed(control, range(20, int(TELL_HOLD_S) * 3), 86) if decision.tell]
    assert len(told) == 1
    assert "86 °C after 10 minutes" in told[0]


def test_after_its_deadline_a_hold_ends_as_soon_as_the_pace_level_allows() -> None:
    """Something else keeps it at 83: paused for ever is a failure."""
    control = HeatControl()
    feed(control, range(20), 94)
    held = [decision.hold for decision in feed(control, range(20, int(TELL_HOLD_S) + 20), 83)]
    assert held.count(True) >= TELL_HOLD_S - 20
    assert not held[-1]


def test_a_speed_below_half_for_half_an_hour_is_told_once() -> None:
    control = HeatControl()
    told = [decision.tell for decision in feed(control, range(int(TELL_SLOW_S) * 2), 86) if decision.tell]
    assert len(told) == 1
    assert "less than 50 %" in told[0]


def test_a_pause_by_somebody_else_is_not_told_as_slowness_or_blindness() -> None:
    """Paused for hours, the GPU let go: nobody is woken, neither then nor when it goes on and the probe only just starts."""
    control = HeatControl()
    feed(control, range(300), 87)
    told = [control.step(second, [source(None)], computing=False).tell for second in range(300, 9000)]
    told += [control.step(second, [source(None)]).tell for second in range(9000, 9030)]
    assert not any(told)


# -- unknown -----------------------------------------------------------------------------------------------------------


def test_a_temperature_that_becomes_unknown_never_raises_the_duty() -> None:
    control = HeatControl()
    paced = feed(control, range(120), 88)[-1].duty_fraction
    assert paced < 0.6
    blind = feed(control, range(120, 1000), None)
    assert all(decision.duty_fraction <= paced + 0.02 for decision in blind)
    assert sum(decision.tell is not None for decision in blind) == 1
    assert blind[int(TELL_BLIND_S) - 5].tell is None


def test_a_device_that_never_told_a_temperature_runs_until_it_says_that_it_is_slowed() -> None:
    control = HeatControl()
    assert all(decision.duty_fraction == 1.0 and decision.tell is None for decision in feed(control, range(900), None))
    slowed = feed(control, range(900, 1500), None, slowed=True)
    assert slowed[-1].duty_fraction == pytest.approx(SLOWED_DUTY, abs=0.03)
    assert not slowed[-1].hold


def test_a_device_that_is_slowed_at_a_low_temperature_is_believed_about_being_slowed() -> None:
    """A stuck sensor, or hot memory: paced to half, not further, and faster again only when it is slowed no more."""
    control = HeatControl()
    assert feed(control, range(100), 60)[-1].duty_fraction == 1.0
    slowed = feed(control, range(100, 400), 60, slowed=True)
    assert slowed[120].duty_fraction == pytest.approx(SLOWED_DUTY, abs=0.03)
    assert slowed[-1].duty_fraction == pytest.approx(SLOWED_DUTY, abs=0.03)
    after = feed(control, range(400, 900), 60)
    assert after[int(SLOWED_CALM_S) - 10].duty_fraction == pytest.approx(SLOWED_DUTY, abs=0.03)
    assert after[-1].duty_fraction == 1.0


def test_a_probe_that_dies_while_holding_does_not_end_the_hold_at_once_nor_hold_for_ever() -> None:
    control = HeatControl()
    feed(control, range(20), 94)
    blind = feed(control, range(20, int(TELL_HOLD_S) + 60), None)
    assert all(decision.hold for decision in blind[: int(TELL_HOLD_S) - 30])
    assert not blind[-1].hold
    assert blind[-1].duty_fraction <= 0.7


def test_a_held_worker_is_not_paced_faster_because_it_cools() -> None:
    """While somebody else holds it (`computing` False) the duty stays, whatever the temperature says."""
    control = HeatControl()
    paced = feed(control, range(120), 88)[-1].duty_fraction
    for second in range(120, 900):
        decision = control.step(second, [source(45)], computing=False)
    assert decision.duty_fraction <= paced + 0.02


def test_calls_between_two_steps_change_nothing_and_tell_nothing_twice() -> None:
    control = HeatControl()
    first = control.step(0, [source(93)])
    again = control.step(0.1, [source(20)])
    assert replace(first, tell=None) == again


# -- power limit -------------------------------------------------------------------------------------------------------


def capped_night(may_cap: bool) -> tuple[list[tuple[float, float]], list[HeatDecision]]:
    """A card whose speed falls by a quarter of what its power does (280 of 350 W: 95 % of the speed)."""
    control, decisions = HeatControl(), []

    def step(second: int, seen_c: float, heat: float) -> float:
        one = HeatSource(name="GPU 0", temperature_c=seen_c, limits=heat_limits(89), heat=heat, cappable=True)
        decisions.append(control.step(second, [one], may_cap=may_cap))
        return decisions[-1].duty_fraction

    def load(second: int) -> float:
        return decisions[-1].power_fraction if decisions else 1.0

    return simulate(Cooling(ambient_c=36, rise_c=75), 2 * 3600, step, load), decisions


def speed(night: list[tuple[float, float]], decisions: list[HeatDecision]) -> float:
    return sum(d * (1 - 0.25 * (1 - c.power_fraction)) for (_, d), c in zip(night, decisions, strict=True)) / len(night)


def test_where_it_is_allowed_a_power_limit_takes_over_from_gaps_and_is_faster() -> None:
    night, decisions = capped_night(may_cap=True)
    plain_night, plain_decisions = capped_night(may_cap=False)
    assert decisions[-1].power_fraction < 1.0
    assert decisions[-1].duty_fraction > 0.9
    assert all(decision.power_fraction == 1.0 for decision in plain_decisions)
    assert max(celsius for celsius, _ in night) <= 89 - 8 + 2
    assert speed(night, decisions) > speed(plain_night, plain_decisions) * 1.05


def test_the_power_limit_moves_slowly_never_below_its_least_and_returns_when_it_is_cool() -> None:
    control = HeatControl()
    fractions = [d.power_fraction for d in _caps(control, range(int(CAP_AFTER_S) * 12), 87)]
    assert min(fractions) == LEAST_CAP
    assert sum(a != b for a, b in itertools.pairwise(fractions)) == 8
    cool = [d.power_fraction for d in _caps(control, range(len(fractions), len(fractions) + 8000), 60)]
    assert cool[-1] == 1.0


def _caps(control: HeatControl, seconds: range, celsius: float) -> list[HeatDecision]:
    return [control.step(second, [source(celsius, cappable=True)], may_cap=True) for second in seconds]


def test_a_cpu_cannot_be_capped() -> None:
    decisions = [HeatControl().step(second, [source(87)], may_cap=True) for second in range(600)]
    assert all(decision.power_fraction == 1.0 for decision in decisions)


# -- always ------------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.floats(0.01, 30),
            st.none() | st.floats(-50, 200),
            st.none() | st.floats(0, 1000),
            st.booleans(),
            st.booleans(),
        ),
        max_size=200,
    )
)
def test_whatever_the_sensors_say_the_decision_is_one_that_can_be_carried_out(
    night: list[tuple[float, float | None, float | None, bool, bool]],
) -> None:
    control, now = HeatControl(), 0.0
    for passed, celsius, heat, slowed, computing in night:
        now += passed
        decision = control.step(
            now, [source(celsius, heat=heat, slowed=slowed, cappable=True)], computing=computing, may_cap=True
        )
        assert LEAST_DUTY <= decision.duty_fraction <= 1.0
        assert LEAST_CAP <= decision.power_fraction <= 1.0
        assert decision.forecast_s is None or (decision.forecast_s >= 0 and math.isfinite(decision.forecast_s))
        assert bool(decision.reason) == (decision.hold or decision.duty_fraction < 1.0 or decision.power_fraction < 1.0)
