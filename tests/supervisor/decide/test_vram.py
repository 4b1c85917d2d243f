"""GPU memory is shared with other programs, and the worker is the one that gives way, without ever being asked in vain."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.shared.settings import Share
from memsup.supervisor.decide.readings import GpuReading
from memsup.supervisor.decide.vram import CALM_S, CONTEXT_BYTES, SETTLE_S, SpillWatch, VramControl, VramDecision

GIB = 1 << 30
TOTAL = 10 * GIB


def gpu(used: float, worker: float | None = None) -> GpuReading:
    return GpuReading(
        at_s=0,
        index=0,
        total_bytes=TOTAL,
        used_bytes=int(used * GIB),
        worker_bytes=None if worker is None else int(worker * GIB),
    )


def step(control: VramControl, now: float, reading: GpuReading, allocated: float, reserved: float) -> VramDecision:
    return control.step(now, reading, int(allocated * GIB), int(reserved * GIB))


def test_a_device_full_of_pytorchs_cache_is_no_pressure() -> None:
    """Reserved but not allocated is the worker's to reuse: 9.9 of 10 GiB in use and nothing wrong."""
    control = VramControl(Share(0.95))
    for now in range(100):
        decision = step(control, now, gpu(9.9, worker=9.6), allocated=4, reserved=9.2)
        assert not decision.shrink
    assert decision.may_grow


def test_what_the_worker_really_holds_beyond_95_percent_shrinks_it() -> None:
    decision = step(VramControl(Share(0.95)), 0, gpu(9.8, worker=9.8), allocated=9.3, reserved=9.4)
    assert decision.shrink
    assert not decision.may_grow
    assert "9.7 GiB of the 9.5 GiB" in decision.reason


def test_it_is_asked_once_and_again_only_after_the_effect_could_show() -> None:
    control = VramControl(Share(0.95))
    asked = [step(control, now / 4, gpu(9.8, worker=9.8), 9.3, 9.4).shrink for now in range(int(4 * 2 * SETTLE_S))]
    assert asked.count(True) == 2


def test_a_game_that_starts_at_night_shrinks_the_worker() -> None:
    """It took 3 GiB of the free part and the device is full: what the worker caches is what the game still wants."""
    control = VramControl(Share(0.95))
    for now in range(40):
        decision = step(control, now, gpu(6.9, worker=6.5), allocated=4, reserved=6.1)
    assert decision.may_grow
    assert not decision.shrink
    assert decision.limit_bytes == int(0.95 * TOTAL) - int(6.9 * GIB) + int(6.1 * GIB)
    for now in (41, 42):
        decision = step(control, now, gpu(9.9, worker=6.5), allocated=4, reserved=6.1)
    assert decision.shrink
    assert "3 GiB less than before" in decision.reason
    assert decision.allowance_bytes == int(0.95 * TOTAL) - int(9.9 * GIB) + int(6.5 * GIB)
    assert decision.limit_bytes == pytest.approx(int(0.95 * TOTAL) - int(9.9 * GIB) + int(6.1 * GIB), abs=2)
    assert decision.crowded == "other programs hold 3.4 GiB of GPU 0, 3 GiB more than before"


def test_a_program_that_took_all_between_two_looks_is_seen_by_what_the_worker_saw_of_it() -> None:
    """The worker finds no room for one row before the device has been looked at again: it is not the row that is too large."""
    control = VramControl(Share(0.95))
    assert control.crowded_by(9 * GIB) is None, "nobody knows yet what others held before"
    for now in range(3):
        step(control, now, gpu(6.9, worker=6.5), allocated=4, reserved=6)  # its context takes 0.5 GiB
    assert control.crowded_by(int(0.9 * GIB)) is None
    assert control.crowded_by(int(3.9 * GIB)) == "other programs hold 3.4 GiB of GPU 0, 3 GiB more than before"


def test_a_limit_in_bytes_is_exactly_that_while_there_is_room() -> None:
    """0.7 GiB are the driver's reserve and a desktop's; of 6,000,000,001 bytes nothing is taken for them. What torch may
    reserve and CUDA's context are that limit together, and what others take is left to them once there is no more room.
    """
    limit = 6_000_000_001
    control = VramControl(limit)
    for now, others in enumerate((0.7, 0.7, 3.9, 3.9)):
        decision = step(control, now, gpu(4.5 + others, worker=4.5), allocated=4, reserved=4.1)
        assert decision.allowance_bytes == limit
        assert decision.limit_bytes == limit - (int(4.5 * GIB) - int(4.1 * GIB))
        assert not decision.shrink
    decision, last = (step(control, now, gpu(9.9, worker=4.5), allocated=4, reserved=4.1) for now in (4, 5))
    assert last.allowance_bytes == pytest.approx(4.6 * GIB, abs=2)
    assert decision.shrink, "somebody else took more, and the device is full"
    assert VramControl(11 * GIB).step(0, gpu(0.5, worker=0), 0, 0).allowance_bytes == TOTAL - GIB // 2


def test_a_program_that_fits_beside_the_worker_changes_nothing() -> None:
    control = VramControl(Share(0.95))
    step(control, 0, gpu(5.4, worker=5), allocated=4, reserved=4.6)
    decision = step(control, 1, gpu(7.4, worker=5), allocated=4, reserved=4.6)
    assert not decision.shrink
    assert decision.may_grow


def test_it_may_grow_again_after_the_game_has_gone_and_a_while_of_calm() -> None:
    control = VramControl(Share(0.95))
    step(control, -1, gpu(6.9, worker=6.5), 4, 6.1)
    step(control, 0, gpu(9.9, worker=6.5), 4, 6.1)
    step(control, 1, gpu(9.9, worker=6.5), 4, 6.1)
    states = [step(control, 2 + now, gpu(4.4, worker=4), 3, 3.6).may_grow for now in range(40)]
    assert not any(states[:28])
    assert all(states[30:])


def test_the_soft_limit_falls_at_once_and_rises_after_a_while_of_calm() -> None:
    control = VramControl(Share(0.95))
    limits = [step(control, now, gpu(7, worker=6.5), 4, 6.1).limit_bytes for now in range(10)]
    limits += [step(control, now, gpu(9, worker=6.5), 4, 6.1).limit_bytes for now in range(10, 20)]
    limits += [step(control, now, gpu(7, worker=6.5), 4, 6.1).limit_bytes for now in range(20, 60)]
    in_gib = [round(limit / GIB, 1) for limit in limits if limit is not None]
    assert in_gib == [8.6] * 11 + [6.6] * (9 + int(CALM_S)) + [8.6] * (40 - int(CALM_S))


def test_memory_that_the_worker_has_just_taken_is_not_taken_for_somebody_elses() -> None:
    """Its heartbeat is a second old: 3 GiB more are used, which the driver ascribes to nobody it knows."""
    control = VramControl(Share(0.95))
    before = [step(control, now, gpu(4.9), allocated=4, reserved=4) for now in range(5)][-1]
    during = step(control, 5, gpu(7.9), allocated=4, reserved=4)
    after = step(control, 6, gpu(7.9), allocated=7, reserved=7)
    assert before.limit_bytes == during.limit_bytes == after.limit_bytes
    assert not during.shrink
    assert during.crowded is None


def test_a_little_more_or_less_is_not_worth_an_order() -> None:
    control = VramControl(Share(0.95))
    limits = {step(control, now, gpu(7 + 0.05 * (now % 3), worker=6.5), 4, 6.1).limit_bytes for now in range(200)}
    assert len(limits) <= 2


def test_without_the_drivers_figure_the_workers_own_and_a_context_are_counted() -> None:
    decision = step(VramControl(Share(0.95)), 0, gpu(9.0), allocated=7, reserved=8)
    assert decision.allowance_bytes == int(0.95 * TOTAL) - (9 * GIB - 8 * GIB - CONTEXT_BYTES)


def test_unknown_neither_shrinks_nor_grows() -> None:
    control = VramControl(Share(0.95))
    for reading, allocated, reserved in (
        (GpuReading(at_s=0, index=0), 1, 1),
        (gpu(5), None, None),
        (GpuReading(at_s=0, index=0, total_bytes=TOTAL), 1, 1),
    ):
        decision = control.step(0, reading, allocated, reserved)
        assert (decision.shrink, decision.may_grow) == (False, False)


@given(
    st.floats(0.5, 1),
    st.lists(st.tuples(st.floats(0, 12), st.floats(0, 12), st.floats(0, 1), st.none() | st.floats(0, 12)), max_size=60),
)
def test_growth_is_never_allowed_while_it_is_to_shrink_and_shrinks_are_apart(
    fraction: float, night: list[tuple[float, float, float, float | None]]
) -> None:
    control = VramControl(Share(fraction))
    shrunk_at = -math.inf
    for second, (used, reserved, share, worker) in enumerate(night):
        decision = step(control, second, gpu(min(used, 10), worker), reserved * share, reserved)
        assert 0 <= (decision.limit_bytes or 0) <= fraction * TOTAL
        if decision.shrink:
            assert not decision.may_grow
            assert decision.reason
            assert second - shrunk_at >= SETTLE_S
            shrunk_at = second


def test_memory_that_wsl_has_moved_into_ram_is_seen_by_the_speed() -> None:
    """It raises no error there (microsoft/WSL#11050): the device is full, and training slow beside its best."""
    watch = SpillWatch()

    def seen(at_s: float, used: float, samples_per_s: float | None) -> str | None:
        gpu = GpuReading(at_s=at_s, index=0, total_bytes=10 * GIB, used_bytes=int(used * GIB))
        return watch.step(at_s, gpu, samples_per_s)

    assert seen(0, 9.9, 100) is None
    assert seen(100, 8, 30) is None, "it is slow for another reason"
    assert seen(200, 9.9, 30) is None
    assert seen(259, 9.9, 30) is None
    assert "runs at 30 % of its best speed" in str(seen(260, 9.9, 30))
    assert seen(261, 9.9, None) is None, "it does not train"
    assert "in" in str(seen(262, 9.9, 40))
    assert seen(263, 9.9, 60) is None
    assert seen(300, 9.9, 30) is None, "a minute begins anew"
