"""A floor that rises step after step is a leak; what comes, goes, or settles is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memsup.worker.plan.footprint import Shape
from memsup.worker.plan.leak import Floor, Leak
from memsup.worker.plan.planner import LEAKED_FRACTION, Planner

MIB = 1 << 20


def watched(steps: int, held_bytes: object, *, seed: int = 0) -> Leak | None:
    """What is found after `steps`; `held_bytes(step)` is the floor, above which something always lies about."""
    floor, random = Floor(), np.random.default_rng(seed)
    for step in range(steps):
        floor.observe(int(held_bytes(step) + random.uniform(0, 100 * MIB)))  # type: ignore[operator]
    return floor.leak()


@given(per_step_kib=st.integers(64, 20_000), steps=st.integers(64, 3000), seed=st.integers(0, 1000))
@example(per_step_kib=4518, steps=68, seed=105)  # few steps in a quarter, so its lowest one was a matter of chance
def test_a_leak_is_found_with_its_slope_whether_fast_or_slow(per_step_kib: int, steps: int, seed: int) -> None:
    rises = per_step_kib * 1024
    leak = watched(steps, lambda step: 500 * MIB + rises * step, seed=seed)
    if rises * steps < 300 * MIB:  # what lies about hides it for a while
        return
    assert leak is not None
    assert leak.per_step_bytes == pytest.approx(rises, rel=0.7)


@given(steps=st.integers(1, 3000), settles_after=st.integers(10, 300), seed=st.integers(0, 1000))
def test_what_settles_is_no_leak(steps: int, settles_after: int, seed: int) -> None:
    """Caches that fill, and a heap that fragments."""
    leak = watched(
        max(steps, 4 * settles_after), lambda step: 900 * MIB - 400 * MIB * np.exp(-4 * step / settles_after), seed=seed
    )
    assert leak is None


@given(steps=st.integers(1, 3000), seed=st.integers(0, 1000))
def test_what_comes_and_goes_is_no_leak(steps: int, seed: int) -> None:
    assert watched(steps, lambda step: 500 * MIB + 300 * MIB * (step // 7 % 2), seed=seed) is None


def test_the_process_is_to_leave_when_a_part_of_its_room_is_gone_and_says_why() -> None:
    planner = Planner(limit_bytes=1500 * MIB, longest=512, may_checkpoint=True)
    reason, step = None, 0
    while reason is None and step < 2000:
        step += 1
        planner.begin_step((500 + step) * MIB)
        reason = planner.leak(lambda: (500 + step) * MIB)  # noqa: B023
    assert LEAKED_FRACTION * 1000 < step < 1.5 * LEAKED_FRACTION * 1000
    assert reason is not None
    assert "1.00 MiB a step" in reason


def test_memory_that_nobody_limits_is_no_reason_to_leave() -> None:
    planner = Planner(limit_bytes=None, longest=512, may_checkpoint=True)
    for step in range(500):
        planner.begin_step((500 + step) * MIB)
        planner.observe(Shape(1, 100), checkpointed=False, peak_bytes=(600 + step) * MIB, before_bytes=500 * MIB)
    assert planner.leak(lambda: 900 * MIB) is None


def test_what_an_allocator_keeps_for_later_is_no_reason_to_leave() -> None:
    planner = Planner(limit_bytes=1500 * MIB, longest=512, may_checkpoint=True)
    handed_back = []

    def hand_back() -> int:
        handed_back.append(step)
        return 520 * MIB

    for step in range(1, 3000):
        planner.begin_step((500 + step) * MIB)
        assert planner.leak(hand_back) is None
    assert 0 < len(handed_back) < 100, "nor is it handed back all the time"
