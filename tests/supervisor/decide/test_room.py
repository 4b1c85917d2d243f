"""What the worker is told that it may hold: less at once, more after calm, and never so much that the ladder has to act."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from memsup.supervisor.decide.ladder import MemoryLimits, memory_use
from memsup.supervisor.decide.readings import MemoryReading
from memsup.supervisor.decide.room import CALM_S, WORTH_FRACTION, Room, room_bytes
from memsup.supervisor.decide.uses import SHRINK_USE, STOP_GROWING_USE

MIB, GIB = 1 << 20, 1 << 30
LIMIT = 10 * GIB
SIZES = st.integers(0, 20 * GIB)


def test_a_fall_is_told_at_once_and_a_rise_when_it_has_lasted() -> None:
    room = Room().seen(0.0, LIMIT, LIMIT)
    assert room == Room(told_bytes=LIMIT)
    assert room.seen(1.0, int(0.95 * LIMIT), LIMIT) == room, "that is noise"
    low = room.seen(2.0, 6 * GIB, LIMIT)
    assert low.told_bytes == 6 * GIB
    up = low.seen(3.0, LIMIT, LIMIT)
    assert up.told_bytes == 6 * GIB
    assert up.seen(3.0 + CALM_S, LIMIT, LIMIT).told_bytes == LIMIT
    assert up.seen(4.0, 6 * GIB, LIMIT).seen(5.0, LIMIT, LIMIT).seen(3.1 + CALM_S, LIMIT, LIMIT).told_bytes == 6 * GIB
    assert up.seen(4.0, 8 * GIB, LIMIT).seen(3.0 + CALM_S, LIMIT, LIMIT).told_bytes == 8 * GIB, "the least of that time"


def test_a_limit_that_a_person_lowers_is_told_however_little_that_is() -> None:
    assert Room(told_bytes=LIMIT).seen(0.0, LIMIT - MIB, LIMIT - MIB).told_bytes == LIMIT - MIB


def test_the_last_bit_that_is_given_back_is_told_as_well() -> None:
    less = int(0.97 * LIMIT)
    waits = Room(told_bytes=less).seen(0.0, LIMIT, LIMIT)
    assert waits.seen(CALM_S, LIMIT, LIMIT).told_bytes == LIMIT


@given(st.lists(st.tuples(st.floats(0.01, 30.0), SIZES | st.none() | st.just(LIMIT)), min_size=1, max_size=60))
def test_whatever_is_seen_nobody_is_told_of_much_more_than_there_is(looks: list[tuple[float, int | None]]) -> None:
    room, now_s = Room(), 0.0
    for after_s, seen_bytes in looks:
        now_s += after_s
        known = None if seen_bytes is None else min(seen_bytes, LIMIT)
        before, room = room, room.seen(now_s, known, LIMIT)
        if known is None:
            assert room == before, "unknown is neither more nor less"
        else:
            assert room.told_bytes is not None
            assert room.told_bytes * (1 - WORTH_FRACTION) <= known + 1
            assert room.told_bytes <= LIMIT
    for _ in range(5):
        now_s += CALM_S
        room = room.seen(now_s, LIMIT, LIMIT)
    assert room.told_bytes == LIMIT, "in the end all of it is back"


@given(SIZES, SIZES, st.integers(0, 4 * GIB), st.integers(1 << 20, 16 * GIB))
def test_who_plans_for_the_room_is_not_asked_for_less(available: int, worker: int, reserve: int, limit: int) -> None:
    """The ladder's two views agree on it, whatever others take; and a sixteenth of it too much is still no reason to halve."""
    total = 24 * GIB
    reading = MemoryReading(
        at_s=0.0, ram_total_bytes=total, ram_available_bytes=min(available, total - worker), worker_bytes=worker
    )
    room = room_bytes(reading, limit_bytes=limit, reserve_bytes=reserve)
    assert room is not None
    others = total - min(available, total - worker) - worker
    assume(2 * worker >= total - reserve - others / STOP_GROWING_USE)
    limits = MemoryLimits(worker_bytes=limit, reserve_bytes=reserve)
    for told, planned, most in ((room, STOP_GROWING_USE, STOP_GROWING_USE), (room / (1 - WORTH_FRACTION), 0.84, SHRINK_USE)):
        held = int(planned * told)
        grown = MemoryReading(at_s=0.0, ram_total_bytes=total, ram_available_bytes=total - others - held, worker_bytes=held)
        use = memory_use(grown, limits)
        assert use is not None
        assert use <= most + 1e-6 or room == 0


@given(SIZES, st.integers(0, 20 * GIB))
def test_a_worker_that_holds_little_of_what_is_left_does_not_hear_of_others(others: int, worker: int) -> None:
    """Until it holds half of it; it grows by no more than it holds at once."""
    total = 24 * GIB
    available = max(0, total - others - worker)
    reading = MemoryReading(at_s=0.0, ram_total_bytes=total, ram_available_bytes=available, worker_bytes=worker)
    room = room_bytes(reading, limit_bytes=LIMIT, reserve_bytes=2 * GIB)
    left = max(0, int(22 * GIB - max(0, total - available - worker) / STOP_GROWING_USE))
    assert room == (min(LIMIT, left) if 2 * worker >= left else LIMIT)


def test_without_a_reading_nothing_is_known() -> None:
    assert room_bytes(MemoryReading(at_s=0.0), limit_bytes=LIMIT, reserve_bytes=GIB) is None
