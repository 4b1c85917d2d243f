"""Stories of the ladder: change a reading, step the clock, see what it asks for. (Kubelet's eviction tests are the model.)"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.supervisor.decide.ladder import (
    HOLD_HELPS_WITHIN_S,
    MEMORY_STEPS,
    HoldReason,
    Ladder,
    MemoryLimits,
    Proposal,
    Rung,
    Stance,
    WorkerView,
    memory_use,
    use_in_words,
)
from memsup.supervisor.decide.readings import DiskReading, MemoryReading
from memsup.supervisor.decide.room import GIVEN_CALM_S
from memsup.supervisor.words import percent

GIB = 1 << 30
TOTAL = 16 * GIB
LIMITS = MemoryLimits(worker_bytes=10 * GIB, reserve_bytes=2 * GIB)
WORKER = WorkerView(alive=True, takes_orders=True)


@dataclass
class Night:
    """A ladder, a clock and a worker whose use of its limit is set by hand."""

    ladder: Ladder
    now_s: float = 1000.0
    worker: WorkerView = WORKER

    def at(self, use: float | None, *, after_s: float = 0.0, available: int | None = TOTAL, **rest: object) -> Stance:
        self.now_s += after_s
        worker_bytes = None if use is None else int(use * LIMITS.worker_bytes)
        memory = MemoryReading(at_s=self.now_s, ram_total_bytes=TOTAL, ram_available_bytes=available, worker_bytes=worker_bytes)
        return self.ladder.step(self.now_s, memory, rest.get("disk"), self.worker, rest.get("proposals", ()))  # type: ignore[arg-type]


@pytest.fixture
def night() -> Night:
    return Night(Ladder(LIMITS, disk_floor_bytes=GIB))


def test_a_quiet_worker_may_grow(night: Night) -> None:
    stance = night.at(0.50)
    assert stance == Stance(rung=Rung.GROW, limit_bytes=LIMITS.worker_bytes)


def test_getting_near_its_limit_it_stops_growing_then_shrinks_at_once(night: Night) -> None:
    assert night.at(0.86).rung is Rung.STOP_GROWING
    stance = night.at(0.91, after_s=2.0)
    assert stance.rung is Rung.SHRINK
    assert stance.shrink
    assert not stance.may_grow
    assert "9.1 GiB of its 10 GiB (91 %)" in stance.reason


def test_shrinking_is_given_time_to_show_before_it_is_asked_again(night: Night) -> None:
    assert night.at(0.91).shrink
    assert not night.at(0.91, after_s=1.0).shrink
    assert night.at(0.91, after_s=2.5).shrink


def test_less_memory_is_told_before_anything_is_halved(night: Night) -> None:
    """Others take so much that the worker is beyond what is left for it: it is told how much that is, and given time."""
    told = night.at(0.5, available=11 * GIB)
    assert told.limit_bytes == LIMITS.worker_bytes
    assert not told.shrink
    stance = night.at(0.5, after_s=1.0, available=int(3.4 * GIB))
    assert stance.rung is Rung.SHRINK
    assert not stance.shrink
    assert stance.limit_bytes is not None
    assert stance.limit_bytes < 6 * GIB
    assert not night.at(0.5, after_s=2.0, available=int(3.4 * GIB)).shrink
    assert night.at(0.5, after_s=1.1, available=int(3.4 * GIB)).shrink, "its plan did not suffice"


def test_what_can_be_kept_small_is_thawed_to_obey_where_little_is_left_and_does_not_fall(night: Night) -> None:
    """A container's limit fell to what is held: 21 MiB are left of 90. Another worker would run into the wall."""
    for limits_itself in (True, False):
        squeezed = Night(Ladder(MemoryLimits(worker_bytes=10 * GIB, reserve_bytes=int(0.5 * GIB)), disk_floor_bytes=GIB))
        squeezed.worker = WorkerView(alive=True, takes_orders=True, limits_itself=limits_itself)
        little = int(0.1 * GIB)
        assert squeezed.at(0.5, available=little).freeze
        assert squeezed.at(0.5, after_s=0.4, available=little).freeze
        stance = squeezed.at(0.5, after_s=0.2, available=little)
        assert (stance.freeze, stance.kill) == ((False, False) if limits_itself else (True, True))
    assert not squeezed.at(0.45, after_s=0.1, available=int(0.6 * GIB)).kill
    falls = Night(Ladder(MemoryLimits(worker_bytes=10 * GIB, reserve_bytes=int(0.5 * GIB)), disk_floor_bytes=GIB))
    falls.worker = WorkerView(alive=True, takes_orders=True, limits_itself=True)
    assert falls.at(0.5, available=int(0.2 * GIB)).freeze
    assert falls.at(0.5, after_s=0.6, available=int(0.1 * GIB)).kill, "somebody else takes what is left, whatever it does"


def test_one_order_at_a_time_and_never_below_one_row(night: Night) -> None:
    night.worker = WorkerView(alive=True, takes_orders=True, order_in_flight=True)
    assert not night.at(0.91).shrink
    night.worker = WorkerView(alive=True, takes_orders=True, can_shrink=False)
    assert not night.at(0.91, after_s=10).shrink


def test_still_too_much_for_a_second_is_held_and_comes_back_one_rung_at_a_time(night: Night) -> None:
    """The plain case: the micro-batch is shrunk, then the worker checkpoints and holds, and comes back again."""
    assert night.at(0.95).holds == frozenset()
    assert night.at(0.955, after_s=1.0).holds == {HoldReason.MEMORY}
    night.worker = WorkerView(alive=True, takes_orders=True, held=True)
    assert night.at(0.60, after_s=0.1).rung is Rung.HOLD, "calm has only begun"
    assert night.at(0.60, after_s=5.1).rung is Rung.SHRINK
    assert night.at(0.60, after_s=10.1).rung is Rung.STOP_GROWING
    stance = night.at(0.60, after_s=20.1)
    assert stance.rung is Rung.GROW
    assert stance.may_grow


def test_when_a_limit_is_raised_nobody_waits_for_calm() -> None:
    """What the rungs were climbed for is over. A container of 3.4 GiB becomes one of 6 GiB again; the worker holds 2."""
    ladder, worker = Ladder(MemoryLimits(worker_bytes=5 * GIB, reserve_bytes=GIB)), int(2.1 * GIB)

    def at(now_s: float, total: int) -> Stance:
        left = total - worker - GIB // 5
        memory = MemoryReading(at_s=now_s, ram_total_bytes=total, ram_available_bytes=left, worker_bytes=worker)
        return ladder.step(now_s, memory, None, WORKER)

    assert at(0.0, 6 * GIB) == Stance(rung=Rung.GROW, limit_bytes=5 * GIB)
    squeezed = at(1.0, int(3.4 * GIB))
    assert (squeezed.rung, squeezed.may_grow) == (Rung.SHRINK, False)
    assert squeezed.limit_bytes is not None
    assert squeezed.limit_bytes < 5 * GIB
    assert at(30.0, 6 * GIB).rung is Rung.SHRINK, "it may be raised in several steps"
    given = at(30.0 + GIVEN_CALM_S, 6 * GIB)
    assert (given.rung, given.may_grow, given.limit_bytes) == (Rung.GROW, True, 5 * GIB)


def test_use_between_leave_and_enter_keeps_the_rung_for_ever(night: Night) -> None:
    """No flapping: dask pauses and resumes at one and the same level."""
    night.at(0.91)
    for _ in range(100):
        assert night.at(0.84, after_s=10).rung is Rung.SHRINK


def test_holding_that_does_not_help_becomes_a_release(night: Night) -> None:
    night.at(0.96)
    night.at(0.96, after_s=1.0)
    assert not night.at(0.96, after_s=HOLD_HELPS_WITHIN_S - 0.1).release
    assert night.at(0.96, after_s=0.2).release


def test_of_several_that_hold_for_one_machine_the_greediest_gives_way_first_and_the_others_stay() -> None:
    """They hold at the same moment. What the first one gives back is enough, and then nothing is asked of the second."""
    greedy, modest = Night(Ladder(LIMITS)), Night(Ladder(LIMITS))
    for night, use in ((greedy, 0.91), (modest, 0.80)):
        night.at(use, available=int(2.1 * GIB))
        assert night.at(use, after_s=1.0, available=int(2.1 * GIB)).holds == {HoldReason.MEMORY}
        assert not night.at(use, after_s=HOLD_HELPS_WITHIN_S, available=int(2.1 * GIB)).release
    assert greedy.at(0.91, after_s=3.0, available=int(2.1 * GIB)).release
    assert not modest.at(0.80, after_s=3.0, available=int(2.1 * GIB)).release
    assert not modest.at(0.80, after_s=4.0, available=11 * GIB).release, "it is on its way down"
    assert modest.at(0.80, after_s=60.0, available=11 * GIB).holds == frozenset()
    assert modest.at(0.80, available=int(2.1 * GIB)).rung is Rung.SHRINK, "a second before it holds"
    modest.at(0.80, after_s=1.1, available=int(2.1 * GIB))
    assert modest.at(0.80, after_s=3 * HOLD_HELPS_WITHIN_S, available=int(2.1 * GIB)).release, "nobody gave way"


def test_a_runaway_is_frozen_before_the_limit_and_killed_if_it_stays_there(night: Night) -> None:
    night.at(0.80)
    stance = night.at(0.92, after_s=0.1)
    assert stance.freeze, "12 % of the limit in 0.1 s: the limit is 0.07 s away, an order takes longer"
    assert not stance.kill
    assert night.at(0.98, after_s=0.2).freeze, "it is looked at again only after a while"
    stance = night.at(0.98, after_s=0.4)
    assert stance.kill
    assert stance.rung is Rung.KILL


def test_a_frozen_worker_with_room_is_thawed_once_and_killed_when_it_races_again(night: Night) -> None:
    night.at(0.80)
    assert night.at(0.92, after_s=0.1).freeze
    assert not night.at(0.92, after_s=0.6).freeze
    assert not night.at(0.92, after_s=0.1).freeze
    assert night.at(0.96, after_s=0.1).freeze, "racing again"
    assert night.at(0.96, after_s=0.6).kill


def test_a_fast_step_far_from_the_limit_is_nobodys_business(night: Night) -> None:
    """A training step takes and gives back gigabytes every second."""
    for _ in range(20):
        assert night.at(0.40, after_s=0.05) == Stance(rung=Rung.GROW, limit_bytes=LIMITS.worker_bytes)
        assert night.at(0.80, after_s=0.05) == Stance(rung=Rung.GROW, limit_bytes=LIMITS.worker_bytes)


def test_other_programs_filling_the_machine_hold_the_worker_although_it_is_small(night: Night) -> None:
    """The reserve belongs to the rest of the machine, whoever takes it."""
    night.at(0.20, available=int(2.5 * GIB))
    stance = night.at(0.20, after_s=1.0, available=int(2.5 * GIB))
    assert HoldReason.MEMORY in stance.holds
    assert "2.5 GiB left" in stance.reason


def test_half_of_the_reserve_gone_freezes_and_if_it_falls_on_kills_whoever_is_to_blame(night: Night) -> None:
    assert night.at(0.20, available=GIB - 1).freeze
    assert night.at(0.20, after_s=0.6, available=GIB - GIB // 8).kill


def test_a_limit_that_was_lowered_to_where_the_worker_stands_leaves_it_time_to_obey(night: Night) -> None:
    """A container's limit falls at once: what is left does not fall on, and a frozen worker can give nothing back."""
    assert night.at(0.20, available=GIB - 1).freeze
    thawed = night.at(0.20, after_s=0.6, available=GIB - 1)
    assert (thawed.freeze, thawed.kill) == (False, False)
    held = night.at(0.20, after_s=1.0, available=GIB - 1)
    assert (held.freeze, held.holds) == (False, {HoldReason.MEMORY})
    assert night.at(0.15, after_s=1.0, available=GIB + GIB // 2).rung is Rung.HOLD
    assert night.at(0.10, after_s=5.0, available=3 * GIB).holds == frozenset({HoldReason.MEMORY})


def test_a_held_worker_is_not_frozen_again_and_again_while_it_waits_to_give_back_what_it_has(night: Night) -> None:
    night.worker = WorkerView(alive=True, takes_orders=True, held=True)
    night.at(0.20, available=GIB - 1)
    stance = night.at(0.20, after_s=1.0, available=GIB - 1)
    assert (stance.freeze, stance.holds, stance.release) == (False, {HoldReason.MEMORY}, False)
    assert night.at(0.20, after_s=HOLD_HELPS_WITHIN_S, available=GIB - 1).release


def test_three_quarters_of_the_reserve_gone_is_no_time_to_obey(night: Night) -> None:
    assert night.at(0.20, available=GIB // 2 - 1).freeze
    assert night.at(0.20, after_s=0.6, available=GIB // 2 - 1).kill


def test_who_is_thawed_to_obey_and_takes_more_is_killed(night: Night) -> None:
    assert night.at(0.20, available=GIB - 1).freeze
    assert not night.at(0.20, after_s=0.6, available=GIB - 1).freeze
    assert night.at(0.20, after_s=0.5, available=GIB // 2 - 1).freeze
    assert night.at(0.20, after_s=0.6, available=GIB // 2 - 1).kill


@pytest.mark.parametrize("use", [0.91, 0.96])
def test_unknown_is_neither_fine_nor_bad(night: Night, use: float) -> None:
    """A sensor that goes away keeps the rung where it was: no release of the brake, no new alarm."""
    night.at(use)
    before = night.at(use, after_s=1.0).rung
    for _ in range(50):
        assert night.at(None, after_s=10.0, available=None).rung is before


def test_with_one_view_gone_the_other_still_counts(night: Night) -> None:
    assert night.at(None, available=int(3 * GIB)).rung is Rung.SHRINK
    assert night.at(0.91, available=None).rung is Rung.SHRINK


def test_a_full_disk_holds_until_there_has_been_room_for_a_while(night: Night) -> None:
    full, room = DiskReading(at_s=0, free_bytes=GIB - 1), DiskReading(at_s=0, free_bytes=2 * GIB)
    assert night.at(0.5, disk=full).holds == {HoldReason.DISK}
    assert night.at(0.5, after_s=1, disk=room).holds == {HoldReason.DISK}
    assert night.at(0.5, after_s=31, disk=room).holds == frozenset()
    assert night.at(0.5, after_s=1, disk=DiskReading(at_s=0, free_bytes=None)).holds == frozenset()


def test_heat_paces_and_holds_without_touching_the_batch(night: Night) -> None:
    """Shrinking does nothing for heat and is not tried."""
    stance = night.at(0.5, proposals=(Proposal(duty_fraction=0.7, reason="GPU 0 is at 86 °C"),))
    assert (stance.rung, stance.duty_fraction, stance.shrink) == (Rung.PACE, 0.7, False)
    stance = night.at(0.5, proposals=(Proposal(hold=HoldReason.HEAT, reason="GPU 0 is at 92 °C"),))
    assert stance.holds == {HoldReason.HEAT}


@pytest.mark.parametrize(
    ("proposal", "pressures"),
    [
        (Proposal(duty_fraction=0.7), (HoldReason.HEAT,)),
        (Proposal(duty_fraction=0.2, hold=HoldReason.HEAT), (HoldReason.HEAT,)),
        (Proposal(hold=HoldReason.POWER), (HoldReason.POWER,)),
        (Proposal(shrink=True, may_grow=False), (HoldReason.MEMORY,)),
        (Proposal(vram_limit_bytes=GIB), ()),
        (Proposal(vram_limit_bytes=GIB, rank=1), ()),
        (Proposal(), ()),
    ],
)
def test_a_stance_says_what_it_answers(night: Night, proposal: Proposal, pressures: tuple[HoldReason, ...]) -> None:
    assert night.at(0.5, proposals=(proposal,)).pressures == pressures


def test_what_one_card_asks_for_concerns_the_rank_on_it(night: Night) -> None:
    """Unless host memory is short, which is all ranks'."""
    cards = (Proposal(shrink=True, vram_limit_bytes=GIB, rank=1), Proposal(vram_limit_bytes=3 * GIB, rank=0))
    stance = night.at(0.5, proposals=cards)
    assert (stance.shrink, stance.shrink_ranks, stance.vram_limit_bytes) == (True, (1,), None)
    assert stance.vram_limits == ((1, GIB), (0, 3 * GIB))
    stance = night.at(0.91, proposals=cards)
    assert (stance.shrink, stance.shrink_ranks) == (True, None)


def test_a_stance_answers_all_that_is_felt_at_once_each_once(night: Night) -> None:
    full = DiskReading(at_s=0, free_bytes=GIB - 1)
    hot = (Proposal(duty_fraction=0.7), Proposal(hold=HoldReason.HEAT), Proposal(hold=HoldReason.POWER))
    assert night.at(0.91, disk=full, proposals=hot).pressures == tuple(HoldReason)
    assert night.at(0.86, after_s=100).pressures == (HoldReason.MEMORY, HoldReason.DISK), "neither is over yet"


def test_without_a_worker_nobody_is_frozen_or_killed(night: Night) -> None:
    night.worker = WorkerView()
    stance = night.at(0.99, available=0)
    assert not stance.freeze
    assert not stance.kill


@given(st.lists(st.tuples(st.floats(0, 1.2), st.floats(0.001, 30)), min_size=1, max_size=60))
def test_climbing_is_never_late_and_coming_down_is_one_rung_at_a_time(walk: list[tuple[float, float]]) -> None:
    night = Night(Ladder(LIMITS))
    for use, after_s in walk:
        before = night.ladder.rung
        night.at(use, after_s=after_s)
        must = max((s.rung for s in MEMORY_STEPS if use >= s.enter and s.hold_s == 0), default=Rung.GROW)
        assert night.ladder.rung >= must
        if night.ladder.rung < before:
            between = [s.rung for s in MEMORY_STEPS if night.ladder.rung < s.rung < before]
            assert between == []


@given(
    worker=st.none() | st.integers(0, 1 << 44),
    total=st.none() | st.integers(0, 1 << 44),
    available=st.none() | st.integers(0, 1 << 44),
)
def test_no_reading_is_an_error(worker: int | None, total: int | None, available: int | None) -> None:
    memory = MemoryReading(at_s=1.0, ram_total_bytes=total, ram_available_bytes=available, worker_bytes=worker)
    use, sentence = memory_use(memory, LIMITS), use_in_words(memory, LIMITS)
    assert (use is None) == (worker is None and (total is None or available is None))
    assert ("cannot be read" if use is None else percent(use)) in sentence
    Ladder(LIMITS).step(1.0, memory, None, WORKER)
