"""When the newest state is kept in memory, as events in, actions out; and how often."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.shared import messages as m
from memsup.shared.loading import load
from memsup.shared.messages import FailureCause, PauseMode, Phase, RequestKind
from memsup.shared.status import Wanted
from memsup.supervisor.decide.events import Event, Outcome
from memsup.supervisor.decide.run.actions import Action, GiveUpState, Record, Send
from memsup.supervisor.decide.run.in_memory import (
    AGAIN_S,
    EVERY_S,
    FRACTION,
    GIVE_UP_USE,
    MOST_FRACTION,
    MOST_USE,
    SELDOM_S,
    SETTLES_S,
    InMemory,
    asked_in,
    interval_s,
)
from memsup.supervisor.decide.run.lifecycle import Lifecycle

MIB = 1 << 20
SIZE_BYTES = 100 * MIB
PROGRESS = m.Progress(
    phase=Phase.TRAINING, ticks=1, epoch=0.1, step=50, total_steps=900, samples=80, loss=0.5, samples_per_s=9.0, eta_s=99.0
)
MEMORY = m.WorkerMemory(resident_bytes=1, cuda_allocated_bytes=None, cuda_reserved_bytes=None, data_limit_bytes=None)


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ([], "auto"),
        (["recovery.in_memory=on"], "on"),
        (["recovery.in_memory=on", "nodes.join=192.168.1.20"], "off"),
        (["recovery.in_memory=on", "training.shard=true", "training.ranks=2"], "off"),
    ],
)
def test_no_state_is_asked_for_where_no_process_here_has_all_of_it(flags: list[str], asked: str) -> None:
    assert asked_in(load(job_file=None, flags=flags, environment={}).settings) == asked


def saved(step: int) -> m.CheckpointNote:
    return m.CheckpointNote(path=f"/s/{step}", step=step, at_unix_s=0.0, verified=True, save_s=1.0, size_bytes=SIZE_BYTES)


AT_40 = saved(40)


def kept(step: int, took_s: float = 0.01) -> m.Kept:
    return m.Kept(step=step, size_bytes=SIZE_BYTES, took_s=took_s)


def beat(life: Lifecycle, at_s: float, step: int, checkpoint: m.CheckpointNote | None = None) -> list[Action]:
    progress = msgspec.structs.replace(PROGRESS, step=step, ticks=int(10 * at_s))
    return life.on_report(at_s, m.Heartbeat(progress=progress, batch=None, memory=MEMORY, checkpoint=checkpoint, digest=None))


def life_that_trains(asked: str = "auto", checkpoint: m.CheckpointNote | None = AT_40, **changes: object) -> Lifecycle:
    values: dict[str, object] = {
        "wanted": Wanted.RUNNING,
        "pause_mode": PauseMode.HOLD,
        "run_id": "r",
        "lease_s": 10.0,
        "memory_limit_bytes": 1 << 30,
        "in_memory": InMemory(asked=asked),
    }
    life = Lifecycle(**(values | changes))  # type: ignore[arg-type]
    life.on_start(0.0, leftover=False)
    begin_life(life, 0.0, checkpoint)
    return life


def begin_life(life: Lifecycle, at_s: float, checkpoint: m.CheckpointNote | None = None) -> list[Action]:
    life.on_spawned(at_s)
    welcomed = life.on_report(at_s, m.Hello(pid=42, run_id="r"))
    return [*welcomed, *beat(life, at_s, 50, checkpoint)]


def look(life: Lifecycle, at_s: float = SETTLES_S, use: float | None = 0.3, *, is_at_rest: bool = True) -> list[Action]:
    return life.on_room_in_memory(at_s, use_with=use, is_at_rest=is_at_rest)


def life_that_keeps(step: int = 45) -> Lifecycle:
    life = life_that_trains()
    look(life)
    life.on_kept(SETTLES_S, kept(step))
    return life


def ordered(actions: list[Action]) -> list[float | None]:
    sent = [action.message for action in actions if isinstance(action, Send)]
    return [message.every_s for message in sent if isinstance(message, m.KeepState)]


def told(actions: list[Action]) -> list[Outcome | None]:
    return [action.outcome for action in actions if isinstance(action, Record) and action.event is Event.IN_MEMORY]


def gives_up(actions: list[Action]) -> bool:
    return any(isinstance(action, GiveUpState) for action in actions)


@given(st.floats(0, 1000))
def test_it_is_written_each_twenty_seconds_or_as_seldom_as_one_percent_of_the_time_demands(took_s: float) -> None:
    every_s = interval_s(took_s)
    assert every_s >= EVERY_S
    assert took_s / every_s <= MOST_FRACTION * (1 + 1e-9)
    if every_s > SELDOM_S:  # only where it would be more than one percent otherwise
        assert took_s / every_s == pytest.approx(MOST_FRACTION)
    elif EVERY_S < every_s < SELDOM_S and took_s / every_s < MOST_FRACTION * (1 - 1e-9):
        assert took_s / every_s == pytest.approx(FRACTION)


def test_it_begins_with_the_first_checkpoint_which_says_what_it_takes() -> None:
    life = life_that_trains(checkpoint=None)
    assert life.state_needs_bytes is None
    assert look(life, use=None) == []
    beat(life, SETTLES_S, 51, saved(51))
    assert life.state_needs_bytes == 2 * SIZE_BYTES
    begun = look(life)
    assert (ordered(begun), told(begun)) == ([EVERY_S], [Outcome.DONE])
    assert look(life) == []
    life.on_kept(SETTLES_S, kept(55))
    assert life.state_needs_bytes == SIZE_BYTES, "one of the two is there"


@pytest.mark.parametrize(
    ("asked", "at_s", "begins"),
    [("auto", SETTLES_S, True), ("auto", SETTLES_S - 1, False), ("on", 1.0, True), ("off", SETTLES_S, False)],
)
def test_a_worker_has_time_to_settle_unless_a_person_asked_for_it_at_once(asked: str, at_s: float, begins: bool) -> None:
    assert bool(ordered(look(life_that_trains(asked), at_s))) is begins


@pytest.mark.parametrize("use", [MOST_USE + 0.01, None])
def test_without_room_there_is_none_and_that_is_said_once(use: float | None) -> None:
    life = life_that_trains()
    first = look(life, use=use)
    assert (ordered(first), told(first)) == ([], [Outcome.FAILED])
    assert look(life, use=use) == []
    assert ordered(look(life, use=MOST_USE)) == [EVERY_S]


def test_nothing_begins_while_memory_is_short() -> None:
    assert look(life_that_trains(), is_at_rest=False) == []


def test_a_worker_is_told_how_seldom_once_it_is_known_what_it_costs() -> None:
    life = life_that_trains()
    look(life)
    assert ordered(life.on_kept(SETTLES_S, kept(45, took_s=0.1))) == []
    assert ordered(life.on_kept(SETTLES_S, kept(46, took_s=0.5))) == [50.0]
    assert ordered(life.on_kept(SETTLES_S, kept(47, took_s=0.49))) == []


@pytest.mark.parametrize("how", ["short", "room", "ran out", "release", "stop", "off"])
def test_it_is_given_up_first_of_all(how: str) -> None:
    life = life_that_keeps()
    match how:
        case "short":
            done = life.on_memory_short(70.0)
        case "room":
            assert not gives_up(look(life, 69.0, use=GIVE_UP_USE))
            done = look(life, 70.0, use=GIVE_UP_USE + 0.01)
        case "ran out":
            done = life.on_report(70.0, m.StateGivenUp(step=50))
        case "release":
            done = life.on_request(70.0, 7, RequestKind.PAUSE_RELEASE)
        case "stop":
            done = life.on_request(70.0, 7, RequestKind.STOP)
        case "off":
            life.in_memory.asked = "off"
            done = life.on_tick(70.0)
    assert gives_up(done)
    assert ordered(done) == [None]
    assert life.newer is None
    assert not gives_up(look(life, 71.0))
    if how in ("short", "room", "ran out"):
        assert told(done) == [Outcome.FAILED]
        assert ordered(look(life, 69.0 + AGAIN_S)) == []
        assert ordered(look(life, 70.0 + AGAIN_S)) == [EVERY_S]


def test_what_was_on_its_way_when_it_was_given_up_goes_as_well() -> None:
    life = life_that_keeps()
    life.on_memory_short(70.0)
    assert gives_up(life.on_kept(70.1, kept(46)))
    assert life.newer is None


def test_a_pause_that_keeps_memory_keeps_it_too() -> None:
    assert not gives_up(life_that_keeps().on_request(70.0, 7, RequestKind.PAUSE_HOLD))


def test_a_checkpoint_that_is_as_new_takes_its_place() -> None:
    life = life_that_keeps(step=45)
    assert not gives_up(beat(life, 70.0, 60, saved(44)))
    done = beat(life, 71.0, 60, saved(45))
    assert gives_up(done)
    assert ordered(done) == [], "it is kept again later"


def test_a_death_costs_what_was_computed_since_and_the_next_worker_goes_on_with_it_at_once() -> None:
    life = life_that_trains()
    beat(life, 1.0, 51)
    look(life)
    life.on_kept(1.0, kept(51))
    beat(life, 2.5, 53)
    died = life.on_exit(3.0, -9, 0)
    death = next(action for action in died if isinstance(action, Record) and action.event is Event.DEATH)
    assert (death.lost_steps, death.lost_s) == (2, 1.5)
    assert not gives_up(died)
    assert life.newest_step == 51
    life.on_tick(9.0)
    assert ordered(begin_life(life, 9.0)) == [EVERY_S], "without having to settle again"
    assert life.work_s == 1.0, "there is a checkpoint of the step that was computed a second before"


def test_a_death_with_what_was_kept_since_the_last_one_is_durable_progress() -> None:
    life = life_that_trains()
    look(life)
    for number in range(20):
        life.on_kept(100.0 * number, kept(45 + number))
        life.on_exit(100.0 * number + 1, -9, 0)
        assert life.terminal is None
        life.on_tick(100.0 * number + 90)
        begin_life(life, 100.0 * number + 90)


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_a_worker_that_fails_before_its_first_step_is_not_given_it_again(how: str) -> None:
    life = life_that_keeps()
    life.on_exit(70.0, -9, 0)
    life.on_tick(90.0)
    life.on_spawned(90.0)
    life.on_report(90.0, m.Hello(pid=43, run_id="r"))
    if how == "failed":
        life.on_report(91.0, m.Failed(cause=FailureCause.CRASH, message="no"))
    assert gives_up(life.on_exit(92.0, -9 if how == "killed" else 1, 0)) is (how == "failed")


def test_a_command_has_none() -> None:
    life = life_that_trains("on", is_command=True)
    assert look(life) == []
