"""What may be taken at once, and as time passes."""

from __future__ import annotations

import pytest

from memsup.supervisor.decide.allowance import Allowance


def test_it_is_full_at_first_and_fills_up_at_its_pace() -> None:
    allowance = Allowance(8, 0.5)
    assert allowance.is_full(100.0)
    allowance.take(8, 100.0)
    assert allowance.left(100.0) == 0
    assert allowance.left(103.0) == 1.5
    assert allowance.due_s(2, 103.0) == 104.0
    assert allowance.due_s(1, 103.0) == 103.0
    assert allowance.left(1e6) == 8


def test_what_took_long_is_not_owed_for_ever() -> None:
    """A single stall of the machine must not close a door for minutes."""
    allowance = Allowance(0.010, 0.25)
    allowance.take(30.0, 0.0)
    assert allowance.left(0.0) == -0.010
    assert allowance.due_s(0.005, 0.0) == pytest.approx(0.060)


def test_a_clock_that_stands_still_gives_nothing() -> None:
    allowance = Allowance(1, 1)
    allowance.take(1, 5.0)
    assert allowance.left(5.0) == allowance.left(4.0) == 0
