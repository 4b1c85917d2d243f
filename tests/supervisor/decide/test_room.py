"""What the worker is told that it may hold: less at once, more after calm, and never so much that the ladder has to act."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from memsup.supervisor.decide.ladder import MemoryLimits, memory_use
from memsup.supervisor.decide.readings import MemoryReading
from memsup.supervisor.decide.room import CALM_S, GIVEN_CALM_S, WORTH_FRACTION, Room, granted_bytes, room_bytes
from memsup.supervisor.decide.uses import SHRINK_USE, STOP_GROWING_USE

MIB, GIB = 1 << 20, 1 << 30
LIMIT = 10 * GIB
SIZES = st.integers(0, 20 * GIB)


def seen(room: Room, now_s: float, room_bytes: int | None, limit_bytes: int = LIMIT) -> Room:
    """Others move, limits do not."""
    return room.seen(now_s, room_bytes, limit_bytes, limit_bytes)


def test_a_fall_is_told_at_once_and_a_rise_when_it_has_lasted() -> None:
    room = seen(Room(), 0.0, LIMIT)
    assert room == Room(told_bytes=LIMIT, granted_bytes=LIMIT)
    assert seen(room, 1.0, int(0.95 * LIMIT)) == room, "that is noise"
    low = seen(room, 2.0, 6 * GIB)
    assert low.told_bytes == 6 * GIB
    up = seen(low, 3.0, LIMIT)
    assert up.told_bytes == 6 * GIB
    assert seen(up, 3.0 + CALM_S, LIMIT).told_bytes == LIMIT
    assert seen(seen(seen(up, 4.0, 6 * GIB), 5.0, LIMIT), 3.1 + CALM_S, LIMIT).told_bytes == 6 * GIB
    assert seen(seen(up, 4.0, 8 * GIB), 3.0 + CALM_S, LIMIT).told_bytes == 8 * GIB, "the least of that time"


def test_room_that_somebody_gives_by_raising_a_limit_is_told_of_soon() -> None:
    """A container's, whose total is what the machine has to it, or the worker's own; what others leave, after calm."""
    low = Room().seen(0.0, 6 * GIB, LIMIT, 6 * GIB)
    up = low.seen(1.0, LIMIT, LIMIT, LIMIT)
    assert up.told_bytes == 6 * GIB
    assert up.seen(1.0 + GIVEN_CALM_S, LIMIT, LIMIT, LIMIT) == Room(told_bytes=LIMIT, granted_bytes=LIMIT)
    by_others = Room().seen(0.0, 6 * GIB, LIMIT, LIMIT).seen(1.0, LIMIT, LIMIT, LIMIT)
    assert by_others.seen(1.0 + GIVEN_CALM_S, LIMIT, LIMIT, LIMIT).told_bytes == 6 * GIB
    taken_back = up.seen(2.0, 6 * GIB, LIMIT, 6 * GIB)
    assert taken_back.seen(1.0 + GIVEN_CALM_S, LIMIT, LIMIT, LIMIT).told_bytes == 6 * GIB, "it has to last"


def test_what_limits_grant_is_the_container_without_the_reserve_whatever_others_take() -> None:
    reading = MemoryReading(at_s=0.0, ram_total_bytes=8 * GIB, ram_available_bytes=GIB, worker_bytes=GIB)
    assert granted_bytes(reading, limit_bytes=LIMIT, reserve_bytes=GIB) == 7 * GIB
    assert granted_bytes(reading, limit_bytes=4 * GIB, reserve_bytes=GIB) == 4 * GIB
    assert granted_bytes(MemoryReading(at_s=0.0), limit_bytes=LIMIT, reserve_bytes=GIB) == LIMIT, "of nothing else is known"


def test_a_limit_that_a_person_lowers_is_told_however_little_that_is() -> None:
    assert seen(Room(told_bytes=LIMIT), 0.0, LIMIT - MIB, LIMIT - MIB).told_bytes == LIMIT - MIB


def test_the_last_bit_that_is_given_back_is_told_as_well() -> None:
    waits = seen(Room(told_bytes=int(0.97 * LIMIT)), 0.0, LIMIT)
    assert seen(waits, CALM_S, LIMIT).told_bytes == LIMIT


@given(st.lists(st.tuples(st.floats(0.01, 30.0), SIZES | st.none() | st.just(LIMIT), SIZES), min_size=1, max_size=60))
def test_whatever_is_seen_nobody_is_told_of_much_more_than_there_is(looks: list[tuple[float, int | None, int]]) -> None:
    room, now_s = Room(), 0.0
    for after_s, seen_bytes, granted in looks:
        now_s += after_s
        known = None if seen_bytes is None else min(seen_bytes, LIMIT)
        before, room = room, room.seen(now_s, known, LIMIT, min(max(granted, known or 0), LIMIT))
        if known is None:
            assert room == before, "unknown is neither more nor less"
        else:
            assert room.told_bytes is not None
            assert room.told_bytes * (1 - WORTH_FRACTION) <= known + 1
            assert room.told_bytes <= LIMIT
    for _ in range(5):
        now_s += CALM_S
        room = seen(room, now_s, LIMIT)
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
