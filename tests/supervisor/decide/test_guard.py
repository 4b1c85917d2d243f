"""When memory is looked at again, and what a look makes of the readings and the devices' proposals."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memsup.supervisor.decide.guard import BURST_S, REST_S, Guard, poll_interval_s, would_compute
from memsup.supervisor.decide.ladder import HoldReason, Ladder, MemoryLimits, Proposal, Rung, Stance, WorkerView
from memsup.supervisor.decide.readings import DiskReading, MemoryReading

MIB = 1 << 20
GIB = 1 << 30
AT_WORK = WorkerView(alive=True, takes_orders=True)


def memory(at_s: float, worker_bytes: int | None = GIB) -> MemoryReading:
    return MemoryReading(at_s=at_s, ram_total_bytes=16 * GIB, ram_available_bytes=12 * GIB, worker_bytes=worker_bytes)


def guard_of(*proposals: Proposal) -> Guard:
    ladder = Ladder(MemoryLimits(worker_bytes=8 * GIB, reserve_bytes=GIB))
    return Guard(ladder, memory(0.0), DiskReading(at_s=0.0, free_bytes=GIB), proposals)


def test_what_a_device_asks_for_once_is_asked_in_one_look_only_and_the_rest_stays_in_force() -> None:
    """Memory is read up to a hundred times for each second's proposal: the micro-batch must be halved once."""
    guard = guard_of(Proposal(shrink=True, may_grow=False, duty_fraction=0.5, reason="VRAM is short"))
    stances = [guard.look(at_s, memory(at_s), AT_WORK) for at_s in (1.0, 1.01, 1.02)]
    assert [stance.shrink for stance in stances] == [True, False, False]
    assert [(stance.may_grow, stance.duty_fraction) for stance in stances] == [(False, 0.5)] * 3


def test_the_room_for_the_newest_checkpoint_is_part_of_the_limit_of_the_disk() -> None:
    guard = guard_of()
    guard.note_disk(DiskReading(at_s=1.0, free_bytes=GIB), checkpoint_bytes=None)
    assert guard.look(1.0, memory(1.0), AT_WORK).holds == frozenset()
    guard.note_disk(DiskReading(at_s=2.0, free_bytes=GIB), checkpoint_bytes=GIB)
    assert guard.look(2.0, memory(2.0), AT_WORK).holds == {HoldReason.DISK}


def test_calm_ends_before_the_worker_has_to_hold() -> None:
    guard = guard_of()
    seen = []
    for at_s, used in enumerate((0.5, 0.86, 0.91, 0.96, 0.96, 0.96)):
        guard.look(float(at_s), memory(float(at_s), int(used * 8 * GIB)), WorkerView(alive=True, takes_orders=True, held=True))
        seen.append((guard.is_at_rest, guard.is_calm))
    assert guard.ladder.rung is Rung.HOLD
    assert seen[0] == (True, True)
    assert seen[1] == (False, True)
    assert seen[-1] == (False, False)


def test_a_worker_that_is_kept_from_computing_by_others_tells_nothing_about_heat() -> None:
    """Held because of heat it would go on as soon as it may; held by a person, or frozen, it would not."""
    for_heat = Stance(holds=frozenset({HoldReason.HEAT, HoldReason.MEMORY}))
    for_memory = Stance(holds=frozenset({HoldReason.MEMORY}))
    assert would_compute(WorkerView(alive=True), for_memory)
    assert would_compute(WorkerView(alive=True, held=True), for_heat)
    assert not would_compute(WorkerView(alive=True, held=True), for_memory)
    assert not would_compute(WorkerView(alive=True, held=True), Stance())
    assert not would_compute(WorkerView(alive=True, frozen=True), for_heat)
    assert not would_compute(WorkerView(), Stance())


def test_without_a_worker_nothing_is_so_urgent_and_the_deadman_still_hears_of_us() -> None:
    guard = guard_of()
    guard.look(1.0, MemoryReading(at_s=1.0, ram_total_bytes=16 * GIB, ram_available_bytes=0), WorkerView())
    assert guard.look_again_in_s(worker_is_gone=True, at_most_s=float("inf")) == REST_S
    assert guard.look_again_in_s(worker_is_gone=True, at_most_s=0.5) == 0.5
    assert guard.look_again_in_s(worker_is_gone=False, at_most_s=0.5) == BURST_S


headroom = st.none() | st.integers(-(1 << 45), 1 << 45)
rate = st.none() | st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)


@given(headroom, rate)
def test_the_next_look_is_never_later_than_a_second_nor_sooner_than_a_burst(left: int | None, per_s: float | None) -> None:
    assert BURST_S <= poll_interval_s(left, per_s) <= REST_S


@given(st.integers(1, 1 << 45), st.floats(1, 1e12))
def test_at_the_measured_rate_there_are_several_looks_before_the_limit(left: int, per_s: float) -> None:
    wait_s = poll_interval_s(left, per_s)
    assert wait_s == BURST_S or wait_s * per_s <= left / 8 * 1.000001


@given(st.integers(1, 1 << 45), st.integers(1, 1 << 45), rate)
def test_less_room_is_never_watched_less_often(one: int, other: int, per_s: float | None) -> None:
    assert poll_interval_s(min(one, other), per_s) <= poll_interval_s(max(one, other), per_s)


def test_a_quiet_machine_is_looked_at_once_a_second_and_a_tight_or_unknown_one_twenty_times() -> None:
    assert poll_interval_s(32 * GIB, None) == REST_S
    assert poll_interval_s(None, None) <= 0.05
    assert poll_interval_s(400 * MIB, 0.0) <= 0.05
    assert poll_interval_s(2 * GIB, 2e9) <= 0.15
    assert poll_interval_s(50 * MIB, 0.0) == BURST_S
    assert poll_interval_s(-1, -5.0) == BURST_S
