"""Which temperature limits are chosen from what a device says (USERS' table of real devices), and what follows from them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.supervisor.decide.thresholds import ASSUMED_SLOWDOWN_C, device_limits, heat_limits

REAL_DEVICES = {
    "GTX 1080": ({"slowdown_threshold_c": 96, "shutdown_threshold_c": 99}, (96, 99), (84, 88, 91, 81)),
    "MX330 (its maximum operating temperature of 57 is not even asked for)": (
        {"slowdown_threshold_c": 97, "shutdown_threshold_c": 102},
        (97, 102),
        (85, 89, 92, 82),
    ),
    "RTX 5000 MXM": (
        {"slowdown_threshold_c": 97.5, "shutdown_threshold_c": 102.5},
        (97.5, 102.5),
        (85.5, 89.5, 92.5, 82.5),
    ),
    "RTX 3080": ({"slowdown_threshold_c": 95, "shutdown_threshold_c": 98}, (95, 98), (83, 87, 90, 80)),
    "30-series that names its maximum of 93 only": ({}, (None, None), (81, 85, 88, 78)),
    "A100 without a slowdown figure": ({"temperature_c": 33}, (None, None), (81, 85, 88, 78)),
    "H100, driver 525: margin, absolute thresholds": (
        {"temperature_c": 35, "margin_c": 51, "slowdown_threshold_c": 89, "shutdown_threshold_c": 92},
        (89, 92),
        (77, 81, 84, 74),
    ),
    "H100, newer driver": (
        {"temperature_c": 33, "margin_c": 54, "slowdown_margin_c": -2, "shutdown_margin_c": -8},
        (89, 95),
        (77, 81, 84, 74),
    ),
    "RTX 5090": (
        {"temperature_c": 25, "margin_c": 65, "slowdown_margin_c": -2, "shutdown_margin_c": -5},
        (92, 95),
        (80, 84, 87, 77),
    ),
    "RTX 4060 Ti": (
        {"temperature_c": 32, "margin_c": 50, "slowdown_margin_c": -2, "shutdown_margin_c": -7},
        (84, 89),
        (72, 76, 79, 69),
    ),
    "RTX PRO 2000 laptop": (
        {"temperature_c": 43, "margin_c": 44, "slowdown_margin_c": -2, "shutdown_margin_c": -5},
        (89, 92),
        (77, 81, 84, 74),
    ),
    "laptop whose old thresholds are left over": (
        {
            "temperature_c": 50,
            "margin_c": 37,
            "slowdown_margin_c": -2,
            "shutdown_margin_c": -12,
            "slowdown_threshold_c": 102,
            "shutdown_threshold_c": 105,
        },
        (89, 99),
        (77, 81, 84, 74),
    ),
    "GB10: a margin without thresholds": ({"temperature_c": 40, "margin_c": 50}, (90, None), (78, 82, 85, 75)),
}
"""What it answers → slowdown and shutdown → where it is shown as warm, paced, held, and goes on."""


@pytest.mark.parametrize(("answers", "own", "chosen"), REAL_DEVICES.values(), ids=REAL_DEVICES.keys())
def test_limits_come_from_the_device_as_real_ones_answer(
    answers: dict[str, float], own: tuple[float | None, float | None], chosen: tuple[float, ...]
) -> None:
    """Margins before thresholds, thresholds before nothing."""
    limits = device_limits(**answers)
    assert (limits.slowdown_c, limits.shutdown_c) == own
    levels = heat_limits(limits.slowdown_c)
    assert (levels.colour_c, levels.pace_c, levels.hold_c, levels.resume_c) == chosen


def test_a_device_that_says_nothing_counts_as_93_and_that_is_said() -> None:
    limits = heat_limits(None)
    assert limits.slowdown_c == ASSUMED_SLOWDOWN_C == 93
    assert limits.assumed
    assert not heat_limits(95).assumed


def test_defaults_are_twelve_eight_five_and_fifteen_below_the_slowdown() -> None:
    limits = heat_limits(96)
    assert (limits.colour_c, limits.pace_c, limits.hold_c, limits.resume_c) == (84, 88, 91, 81)


def test_geforce_at_its_usual_set_point_is_neither_paced_nor_held() -> None:
    """83 to 84 °C is normal for cards that slow down at 93 or later; nobody wants to be told of it."""
    for slowdown in (93, 95, 96, 97):
        assert heat_limits(slowdown).pace_c >= 85


def test_the_user_may_go_nearer_to_the_slowdown_but_not_past_the_hold_level() -> None:
    assert heat_limits(95, 75).pace_c == 75
    assert heat_limits(95, 75).hold_c == 78
    assert heat_limits(95, 89).pace_c == 89
    assert heat_limits(95, 120).pace_c == 90
    assert heat_limits(95, 120).hold_c < 95


@given(
    st.fixed_dictionaries(
        {
            name: st.none() | st.floats(allow_nan=True, allow_infinity=True)
            for name in (
                "temperature_c",
                "margin_c",
                "slowdown_margin_c",
                "shutdown_margin_c",
                "slowdown_threshold_c",
                "shutdown_threshold_c",
            )
        }
    )
)
def test_whatever_a_driver_says_the_limits_are_sensible_or_unknown(answers: dict[str, float | None]) -> None:
    limits = device_limits(**answers)
    for value in (limits.slowdown_c, limits.shutdown_c):
        assert value is None or 60 <= value <= 120
    if limits.slowdown_c is not None and limits.shutdown_c is not None:
        assert limits.shutdown_c >= limits.slowdown_c


@given(st.none() | st.floats(60, 120), st.none() | st.floats(1, 149))
def test_the_levels_are_in_order_and_below_the_slowdown(slowdown: float | None, chosen: float | None) -> None:
    limits = heat_limits(slowdown, chosen)
    assert limits.resume_c < limits.colour_c < limits.pace_c < limits.hold_c < limits.slowdown_c
