"""When a process stands by for the next worker, as events in, actions out."""

from __future__ import annotations

import msgspec
import pytest

from memsup.shared import messages as m
from memsup.shared.messages import PauseMode, Phase, RequestKind
from memsup.shared.status import Wanted
from memsup.supervisor.decide.events import Event, Outcome
from memsup.supervisor.decide.guard import Guard, without
from memsup.supervisor.decide.ladder import Ladder, MemoryLimits, Stance
from memsup.supervisor.decide.readings import DiskReading, MemoryReading
from memsup.supervisor.decide.run.actions import Action, CoolDown, Kill, Record, WarmUp
from memsup.supervisor.decide.run.lifecycle import Lifecycle
from memsup.supervisor.decide.run.warm import (
    AFTER_DEATH_S,
    AFTER_PRESSURE_S,
    AGAIN_S,
    MOST_USE,
    MOVES,
    NEEDS_BYTES,
    SETTLES_S,
    WORTH_S,
    Standby,
    Warmth,
)

PROGRESS = m.Progress(
    phase=Phase.TRAINING,
    ticks=1,
    epoch=0.1,
    step=5,
    total_steps=100,
    samples=80,
    loss=0.5,
    samples_per_s=9.0,
    eta_s=WORTH_S,
)
MEMORY = m.WorkerMemory(resident_bytes=1, cuda_allocated_bytes=None, cuda_reserved_bytes=None, data_limit_bytes=None)


def life_that_trains(asked: str = "auto", eta_s: float | None = WORTH_S, **changes: object) -> Lifecycle:
    values: dict[str, object] = {
        "wanted": Wanted.RUNNING,
        "pause_mode": PauseMode.HOLD,
        "run_id": "r",
        "lease_s": 10.0,
        "memory_limit_bytes": 1 << 30,
        "standby": Standby(asked=asked),
    }
    life = Lifecycle(**(values | changes))  # type: ignore[arg-type]
    life.on_start(0.0, leftover=False)
    life.on_spawned(0.0)
    life.on_report(0.0, m.Hello(pid=42, run_id="r"))
    progress = msgspec.structs.replace(PROGRESS, eta_s=eta_s)
    life.on_report(0.0, m.Heartbeat(progress=progress, batch=None, memory=MEMORY, checkpoint=None, digest=None))
    return life


def look(life: Lifecycle, warmth: Warmth, at_s: float = 1.0, **changes: object) -> list[Action]:
    """`at_s` counts from the time at which the worker has found its cut."""
    values: dict[str, object] = {"use_with": 0.3, "is_at_rest": True}
    return life.on_warmth(SETTLES_S + at_s, warmth, **(values | changes))  # type: ignore[arg-type]


def kinds(actions: list[Action]) -> set[type]:
    return {type(action) for action in actions} & {WarmUp, CoolDown}


def told(actions: list[Action]) -> list[Outcome | None]:
    return [action.outcome for action in actions if isinstance(action, Record) and action.event is Event.STANDBY]


@pytest.mark.parametrize(
    ("asked", "eta_s", "begins"),
    [
        ("auto", WORTH_S, True),
        ("auto", WORTH_S - 1, False),
        ("auto", None, False),
        ("on", None, True),
        ("off", 10 * WORTH_S, False),
    ],
)
def test_it_is_begun_where_the_run_goes_on_for_long_enough(asked: str, eta_s: float | None, begins: bool) -> None:
    assert (kinds(look(life_that_trains(asked, eta_s), Warmth.NONE)) == {WarmUp}) is begins


def test_a_worker_has_first_time_to_find_its_cut_unless_a_person_asked_for_it_at_once() -> None:
    assert not kinds(look(life_that_trains(), Warmth.NONE, -0.1))
    assert kinds(look(life_that_trains("on"), Warmth.NONE, -0.1)) == {WarmUp}


def test_it_is_begun_once_and_said_once_it_stands_by() -> None:
    life = life_that_trains()
    assert kinds(look(life, Warmth.NONE)) == {WarmUp}
    assert not kinds(look(life, Warmth.LOADING))
    assert told(look(life, Warmth.READY)) == [Outcome.DONE]
    assert look(life, Warmth.READY) == []
    assert look(life, Warmth.BEARING) == look(life, Warmth.READY) == []


@pytest.mark.parametrize("use", [MOST_USE + 0.01, None])
def test_without_room_there_is_none_and_that_is_said_once(use: float | None) -> None:
    life = life_that_trains()
    first = look(life, Warmth.NONE, use_with=use)
    assert (kinds(first), told(first)) == (set(), [Outcome.FAILED])
    assert look(life, Warmth.NONE, use_with=use) == []
    assert kinds(look(life, Warmth.NONE, use_with=MOST_USE)) == {WarmUp}


def test_it_goes_at_the_first_sign_that_memory_gets_short_and_comes_again_a_minute_later() -> None:
    life = life_that_trains()
    look(life, Warmth.NONE)
    look(life, Warmth.READY)
    short = look(life, Warmth.READY, 10.0, is_at_rest=False)
    assert (kinds(short), told(short)) == ({CoolDown}, [Outcome.FAILED])
    assert look(life, Warmth.NONE, 11.0, is_at_rest=False) == []
    assert not kinds(look(life, Warmth.NONE, 9.0 + AFTER_PRESSURE_S))
    assert kinds(look(life, Warmth.NONE, 10.0 + AFTER_PRESSURE_S)) == {WarmUp}


def test_it_goes_before_the_ladder_asks_anything_of_the_worker() -> None:
    life = life_that_trains()
    look(life, Warmth.NONE)
    look(life, Warmth.READY)
    short = life.on_memory_short(SETTLES_S + 2.0)
    assert (kinds(short), told(short)) == ({CoolDown}, [Outcome.FAILED])
    assert life.on_memory_short(SETTLES_S + 2.1) == [], "there is none any more"


def test_one_that_dies_again_and_again_comes_back_soon_at_first_then_ever_later() -> None:
    life = life_that_trains()
    at_s, waits = 1.0, []
    for _ in range(10):
        assert kinds(look(life, Warmth.NONE, at_s)) == {WarmUp}
        look(life, Warmth.READY, at_s + 3.0)
        died_s = at_s = at_s + 4.0
        assert told(look(life, Warmth.NONE, died_s)) == [Outcome.FAILED]
        while life.standby.not_before_s > SETTLES_S + at_s:
            assert not kinds(look(life, Warmth.NONE, at_s))
            at_s += 1.0
        waits.append(at_s - died_s)
    assert waits == [AFTER_DEATH_S * 2**number for number in range(7)] + [AGAIN_S] * 3

    look(life, Warmth.NONE, at_s)
    look(life, Warmth.READY, at_s)
    look(life, Warmth.NONE, at_s + AGAIN_S)  # this one has stood by for long
    assert life.standby.not_before_s == SETTLES_S + at_s + AGAIN_S + AFTER_DEATH_S


def test_one_that_has_ended_by_itself_is_told_with_its_own_reason() -> None:
    life = life_that_trains()
    look(life, Warmth.NONE)
    seen = look(life, Warmth.NONE, why_refused="what it has imported runs 3 threads of its own")
    assert told(seen) == [Outcome.FAILED]
    assert "3 threads" in next(action.reason for action in seen if isinstance(action, Record))
    assert not kinds(look(life, Warmth.NONE, 100.0))
    assert kinds(look(life, Warmth.NONE, 2.0 + AGAIN_S)) == {WarmUp}
    seen = look(life, Warmth.NONE, 3.0 + AGAIN_S, why_dismissed="it brought no worker within 5 s")
    reason = next(action.reason for action in seen if isinstance(action, Record))
    assert reason.endswith(": it brought no worker within 5 s; another is tried in 5 s at the earliest")


@pytest.mark.parametrize("what", [RequestKind.PAUSE_RELEASE, RequestKind.STOP])
def test_it_goes_with_the_order_to_give_memory_back(what: RequestKind) -> None:
    life = life_that_trains()
    look(life, Warmth.NONE)
    look(life, Warmth.READY)
    assert kinds(life.on_request(2.0, 7, what)) == {CoolDown}
    assert not kinds(look(life, Warmth.NONE, 3.0))


def test_a_pause_that_keeps_memory_keeps_it_too() -> None:
    life = life_that_trains()
    look(life, Warmth.NONE)
    look(life, Warmth.READY)
    assert not kinds(life.on_request(2.0, 7, RequestKind.PAUSE_HOLD))


def test_what_memsup_kills_is_killed_with_it_and_the_next_life_has_one_again() -> None:
    life = life_that_trains()
    look(life, Warmth.NONE)
    look(life, Warmth.READY)
    killed = life.on_stance(2.0, Stance(kill=True, reason="memory"))
    assert any(isinstance(action, Kill) for action in killed)
    assert look(life, Warmth.NONE, 2.1) == [], "its end is no news"
    life.on_stance(2.2, Stance())
    life.on_exit(2.3, -9, 0)
    life.on_tick(90.0)
    life.on_spawned(90.0)
    life.on_report(90.0, m.Hello(pid=43, run_id="r"))
    life.on_report(90.0, m.Heartbeat(progress=PROGRESS, batch=None, memory=MEMORY, checkpoint=None, digest=None))
    assert kinds(look(life, Warmth.NONE, 90.0)) == {WarmUp}


def test_a_command_has_none() -> None:
    life = life_that_trains("on", is_command=True)
    assert not kinds(look(life, Warmth.NONE))


def test_the_moves_lead_from_each_to_none_and_back() -> None:
    assert set(MOVES) == set(Warmth)
    for state, following in MOVES.items():
        assert state not in following
        assert state is Warmth.NONE or Warmth.NONE in following


def test_the_memory_with_it_is_judged_in_both_views_and_by_what_steps_take_at_most() -> None:
    gib = 1 << 30
    guard = Guard(
        Ladder(MemoryLimits(worker_bytes=4 * gib, reserve_bytes=gib)),
        memory=MemoryReading(at_s=0.0, ram_total_bytes=9 * gib, ram_available_bytes=8 * gib, worker_bytes=gib),
        disk=DiskReading(at_s=0.0),
    )
    assert guard.use_with(NEEDS_BYTES, None) == pytest.approx((gib + NEEDS_BYTES) / (4 * gib))
    assert guard.use_with(NEEDS_BYTES, 3 * gib) == pytest.approx((3 * gib + NEEDS_BYTES) / (4 * gib))
    guard.memory = msgspec.structs.replace(guard.memory, ram_available_bytes=2 * gib)
    assert guard.use_with(NEEDS_BYTES, None) == pytest.approx((7 * gib + NEEDS_BYTES) / (8 * gib))
    assert guard.is_short(guard.memory)
    assert not guard.is_short(without(guard.memory, gib)), "what stands by is what is too much"
    guard.memory = msgspec.structs.replace(guard.memory, worker_bytes=None)
    assert guard.use_with(NEEDS_BYTES, None) is None
    assert without(guard.memory, gib).worker_bytes is None
