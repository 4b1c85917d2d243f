"""Histories of a command that takes no orders and has GPU memory: when the driver moves that into RAM and back, or cannot."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.shared.messages import PauseMode, RequestKind
from memsup.shared.status import RunState, Wanted
from memsup.supervisor.decide.events import Event
from memsup.supervisor.decide.ladder import MemoryLimits, Stance
from memsup.supervisor.decide.readings import MemoryReading
from memsup.supervisor.decide.run.actions import AbandonMove, Action, Answer, Freeze, Kill, MoveCard, Record, Terminate, Thaw
from memsup.supervisor.decide.run.card import AGAIN_AFTER_S, GONE, MOVES, Card, CardView, Moved, Place, Whole, room_bytes
from memsup.supervisor.decide.run.freed import GivenBack
from memsup.supervisor.decide.run.lifecycle import Lifecycle
from memsup.supervisor.decide.run.one_life import Stage

GIB = 1 << 30
SEEN = CardView(holders={42: 6 * GIB, 43: 2 * GIB}, room_bytes=16 * GIB)
ALONE = CardView(holders={42: 8 * GIB}, room_bytes=16 * GIB)
OUT, BACK = MoveCard((42, 43), to_ram=True), MoveCard((42, 43), to_ram=False)
IN_RAM, ON_CARD = Moved(whole=Whole.CHECKPOINTED), Moved(whole=Whole.RUNNING)
REFUSED = Moved(whole=Whole.RUNNING, why="this driver cannot", never=True)
LEAVE = Stance(leave_card=True, reason="other programs hold 9 GiB")


@dataclass
class Play:
    life: Lifecycle
    now_s: float = 0.0

    def do(self, event: str, *args: object, after_s: float = 0.0, **kwargs: object) -> list[Action]:
        self.now_s += after_s
        actions: list[Action] = getattr(self.life, f"on_{event}")(self.now_s, *args, **kwargs)
        return actions

    @property
    def place(self) -> Place:
        return self.life.worker.card.place

    def in_ram(self) -> None:
        assert OUT in self.do("request", 1, RequestKind.PAUSE_RELEASE)
        assert answer(self.do("card_moved", IN_RAM)).ok


@pytest.fixture
def play() -> Play:
    life = Lifecycle(
        wanted=Wanted.RUNNING,
        pause_mode=PauseMode.HOLD,
        run_id="r",
        lease_s=10.0,
        memory_limit_bytes=20 * GIB,
        is_command=True,
    )
    found = Play(life)
    found.do("start", leftover=False)
    found.do("spawned")
    life.on_card_seen(SEEN)
    return found


def answer(actions: list[Action]) -> Answer:
    (found,) = [action for action in actions if isinstance(action, Answer)]
    return found


def events(actions: list[Action]) -> list[Event]:
    return [action.event for action in actions if isinstance(action, Record)]


def test_it_is_moved_while_the_program_runs_then_frozen_and_answered_once_the_device_shows_it(play: Play) -> None:
    asked = play.do("request", 1, RequestKind.PAUSE_RELEASE)
    assert OUT in asked
    assert Freeze() not in asked, "the driver works inside of its processes"
    assert play.life.state is RunState.PAUSING
    moved = play.do("card_moved", IN_RAM, None)
    assert Freeze() in moved
    assert Event.CARD_LEFT in events(moved)
    assert not [action for action in moved if isinstance(action, Answer)]
    told = answer(play.do("given_back", GivenBack(vram_bytes=8 * GIB)))
    assert told.ok
    assert "8 GiB of VRAM by the device's own count" in told.text
    assert play.life.state is RunState.PAUSED


def test_resume_thaws_brings_it_back_and_is_answered_when_it_computes(play: Play) -> None:
    play.in_ram()
    resumed = play.do("request", 2, RequestKind.RESUME)
    assert resumed.index(Thaw()) < resumed.index(BACK)
    back = play.do("card_moved", ON_CARD)
    assert answer(back).text == "Running."
    assert Event.CARD_BACK in events(back)
    assert play.life.state is RunState.RUNNING


def test_one_that_was_frozen_runs_while_it_is_moved(play: Play) -> None:
    play.do("request", 1, RequestKind.PAUSE_HOLD)
    assert play.life.frozen
    asked = play.do("request", 2, RequestKind.PAUSE_RELEASE)
    assert asked.index(Thaw()) < asked.index(OUT)
    assert Freeze() in play.do("card_moved", IN_RAM)


def test_what_the_driver_refuses_is_said_and_all_is_as_it_was(play: Play) -> None:
    play.do("request", 1, RequestKind.PAUSE_HOLD)
    play.do("request", 2, RequestKind.PAUSE_RELEASE)
    refused = play.do("card_moved", REFUSED)
    assert not answer(refused).ok
    assert "nor can its GPU memory be moved into RAM: this driver cannot; use:" in answer(refused).text
    assert Freeze() in refused, "it is held as before"
    assert (play.life.wanted, play.life.pause_mode) == (Wanted.PAUSED, PauseMode.HOLD)
    again = play.do("request", 3, RequestKind.PAUSE_RELEASE)
    assert "this driver cannot" in answer(again).text
    assert OUT not in again, "there is no use in it"


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (
            CardView(holders={42: 8 * GIB}, room_bytes=3 * GIB),
            "takes 8 GiB of RAM, and its limit and the machine have room for",
        ),
        (CardView(holders={42: None}, room_bytes=3 * GIB), "does not tell how much"),
        (CardView(holders=None, room_bytes=3 * GIB), "does not tell how much"),
        (
            CardView(is_hidden=True, room_bytes=3 * GIB),
            "as in a container, so which memory on the card is its own is not known",
        ),
        (CardView(holders={42: 8 * GIB}), "not known"),
    ],
)
def test_without_room_in_ram_nothing_is_tried(play: Play, seen: CardView, says: str) -> None:
    play.life.on_card_seen(seen)
    asked = play.do("request", 1, RequestKind.PAUSE_RELEASE)
    assert says in answer(asked).text
    assert OUT not in asked
    assert play.life.wanted is Wanted.RUNNING


def test_one_that_has_nothing_on_a_gpu_is_answered_as_ever(play: Play) -> None:
    play.life.on_card_seen(CardView(holders={}, room_bytes=GIB))
    text = answer(play.do("request", 1, RequestKind.PAUSE_RELEASE)).text
    assert "cannot give its memory back and go on later; use:" in text


def test_whoever_changes_their_mind_meanwhile_gets_it_back(play: Play) -> None:
    play.do("request", 1, RequestKind.PAUSE_RELEASE)
    assert "Another request" in answer(play.do("request", 2, RequestKind.RESUME)).text
    moved = play.do("card_moved", IN_RAM)
    assert BACK in moved
    assert Freeze() not in moved
    assert answer(play.do("card_moved", ON_CARD)).token == 2


def test_a_child_that_dies_or_is_late_on_the_way_out_is_undone_and_said(play: Play) -> None:
    play.do("request", 1, RequestKind.PAUSE_RELEASE)
    gone = play.do("card_moved", GONE)
    assert BACK in gone
    assert not answer(gone).ok
    play.do("card_moved", ON_CARD)
    assert play.life.state is RunState.RUNNING
    play.do("request", 2, RequestKind.PAUSE_RELEASE)
    late = play.do("tick", after_s=60)
    assert late.index(AbandonMove()) < late.index(BACK)
    assert "not do it in time" in answer(late).text


def test_one_that_stands_still_for_memory_has_its_time_again(play: Play) -> None:
    play.do("request", 1, RequestKind.PAUSE_RELEASE)
    assert Freeze() in play.do("stance", Stance(freeze=True))
    assert AbandonMove() not in play.do("tick", after_s=1000)
    assert Thaw() in play.do("stance", Stance())
    assert Freeze() in play.do("card_moved", IN_RAM)


def test_what_cannot_be_brought_back_is_told_and_tried_again(play: Play) -> None:
    play.in_ram()
    play.do("request", 2, RequestKind.RESUME)
    full = play.do("card_moved", Moved(whole=Whole.CHECKPOINTED, why="there is not enough memory for it"))
    assert "there is not enough memory" in answer(full).text
    assert Event.CARD_STUCK in events(full)
    assert BACK not in play.do("tick", after_s=AGAIN_AFTER_S - 1)
    assert BACK in play.do("tick", after_s=2)
    play.do("card_moved", GONE)
    assert play.place is Place.STUCK
    assert play.life.worker.card.sentence("night") is not None
    assert BACK in play.do("tick", after_s=AGAIN_AFTER_S)
    play.do("card_moved", ON_CARD)
    assert play.life.worker.card.sentence("night") is None


def test_what_is_lost_is_lost(play: Play) -> None:
    play.do("request", 1, RequestKind.PAUSE_RELEASE)
    lost = play.do("card_moved", Moved(whole=Whole.FAILED, why="the driver says CUDA_ERROR_UNKNOWN"))
    assert Event.CARD_STUCK in events(lost)
    assert not answer(lost).ok
    assert play.life.wanted is Wanted.RUNNING
    assert "CUDA is dead in it" in str(play.life.worker.card.sentence("night"))
    assert not play.do("tick", after_s=1000)
    play.do("exit", 1, 0)
    assert play.place is Place.ON_CARD, "another life has a card of its own"


def test_a_program_that_ends_in_the_middle_of_a_move_takes_it_along(play: Play) -> None:
    play.do("request", 1, RequestKind.PAUSE_RELEASE)
    gone = play.do("exit", -9, 0)
    assert not answer(gone).ok
    assert play.place is Place.ON_CARD
    assert play.do("card_moved", GONE) == [], "the answer of a child that asked for the one before"


def test_a_stop_brings_it_back_first_since_its_end_may_need_the_card(play: Play) -> None:
    play.in_ram()
    stopped = play.do("request", 2, RequestKind.STOP)
    assert BACK in stopped
    assert Terminate() not in stopped
    assert Terminate() in play.do("card_moved", ON_CARD)


def test_a_stop_does_not_wait_for_a_card_that_others_have(play: Play) -> None:
    play.in_ram()
    play.do("request", 2, RequestKind.STOP)
    full = play.do("card_moved", Moved(whole=Whole.CHECKPOINTED, why="there is not enough memory for it"))
    assert Terminate() in full
    assert not play.life.frozen


def test_a_stop_at_once_does_not(play: Play) -> None:
    play.in_ram()
    assert Kill() in play.do("request", 2, RequestKind.STOP_NOW)
    assert play.do("card_moved", ON_CARD) == []


def test_for_others_it_leaves_unasked_and_comes_back_when_they_have_gone(play: Play) -> None:
    play.life.on_card_seen(ALONE)
    assert MoveCard((42,), to_ram=True) in play.do("stance", LEAVE)
    assert Freeze() in play.do("card_moved", IN_RAM)
    assert play.life.state is RunState.RECOVERING
    assert "waits for the GPU" in answer(play.do("request", 1, RequestKind.RESUME)).text
    assert MoveCard((42,), to_ram=False) in play.do("stance", Stance(), after_s=60)
    play.do("card_moved", ON_CARD)
    assert play.life.state is RunState.RUNNING


def test_one_with_several_processes_there_leaves_unasked_only_once_a_person_has_tried_it(play: Play) -> None:
    assert events(play.do("stance", LEAVE)) == [Event.CARD_KEPT]
    play.do("stance", Stance())
    play.in_ram()
    play.do("request", 2, RequestKind.RESUME)
    play.do("card_moved", ON_CARD)
    assert OUT in play.do("stance", LEAVE)


def test_what_cannot_leave_for_others_stays_and_that_is_told_once(play: Play) -> None:
    play.life.on_card_seen(ALONE)
    play.do("stance", LEAVE)
    assert events(play.do("card_moved", REFUSED)) == [Event.CARD_KEPT]
    assert play.life.state is RunState.RUNNING
    assert play.do("stance", LEAVE, after_s=10) == []
    play.do("stance", Stance())
    assert play.do("stance", LEAVE) == [], "this driver cannot"


def test_room_is_what_the_ladder_leaves_alone() -> None:
    memory = MemoryReading(at_s=0, ram_total_bytes=100 * GIB, ram_available_bytes=60 * GIB, worker_bytes=10 * GIB)
    assert room_bytes(memory, MemoryLimits(worker_bytes=40 * GIB, reserve_bytes=10 * GIB)) == 24 * GIB
    assert room_bytes(memory, MemoryLimits(worker_bytes=80 * GIB, reserve_bytes=40 * GIB)) == 11 * GIB
    assert room_bytes(memory, MemoryLimits(worker_bytes=10 * GIB, reserve_bytes=0)) == 0
    unknown = MemoryReading(at_s=0, ram_total_bytes=100 * GIB, ram_available_bytes=None, worker_bytes=GIB)
    assert room_bytes(unknown, MemoryLimits(worker_bytes=GIB, reserve_bytes=0)) is None


WHOLES = st.sampled_from([Moved(whole=whole, why="w") for whole in Whole])


WORDS = st.sampled_from(["pause", "hold", "resume", "crowd", "calm", "tick", "freeze"])
SEENS = st.sampled_from([SEEN, ALONE])
STEPS = st.lists(st.one_of(WORDS, WHOLES), max_size=30)


def played(steps: list[str | Moved], seen: CardView) -> Play:
    """A program that has lived through that; asserts that it was never moved while it stood still."""
    life = Lifecycle(
        wanted=Wanted.RUNNING, pause_mode=PauseMode.HOLD, run_id="r", lease_s=10, memory_limit_bytes=None, is_command=True
    )
    play = Play(life)
    play.do("start", leftover=False)
    play.do("spawned")
    life.on_card_seen(seen)
    for step in steps:
        match step:
            case Moved():
                actions = play.do("card_moved", step) if life.worker.card.moves else []
            case "pause" | "hold" | "resume":
                kinds = {"pause": RequestKind.PAUSE_RELEASE, "hold": RequestKind.PAUSE_HOLD, "resume": RequestKind.RESUME}
                actions = play.do("request", 1, kinds[step])
            case "tick":
                actions = play.do("tick", after_s=40)
            case _:
                actions = play.do("stance", {"crowd": LEAVE, "calm": Stance(), "freeze": Stance(freeze=True)}[step])
        if any(isinstance(action, MoveCard) for action in actions):
            assert not life.frozen
        if life.worker.card.is_off and not life.stance.freeze and life.why_off_card is not None:
            assert life.frozen
    return play


def driven(play: Play, actions: list[Action]) -> list[Action]:
    """What follows where the driver does as it is asked, for some minutes."""
    done = list(actions)
    for _ in range(12):
        if play.life.worker.card.moves:
            returns = play.place is Place.RETURNING
            actions = play.do("card_moved", ON_CARD if returns else IN_RAM)
        else:
            actions = play.do("tick", after_s=AGAIN_AFTER_S + 1)
        done += actions
    return done


@given(STEPS, SEENS)
def test_whatever_comes_no_move_is_illegal_and_a_frozen_program_is_never_moved(
    steps: list[str | Moved], seen: CardView
) -> None:
    played(steps, seen)
    assert set(MOVES) == set(Place)
    assert Card().place is Place.ON_CARD


@given(STEPS, SEENS)
def test_from_wherever_it_is_a_program_gets_its_card_back_once_nobody_else_wants_it(
    steps: list[str | Moved], seen: CardView
) -> None:
    play = played(steps, seen)
    driven(play, [*play.do("stance", Stance()), *play.do("request", 9, RequestKind.RESUME)])
    assert play.place in (Place.ON_CARD, Place.LOST)
    assert not play.life.frozen


@given(STEPS, SEENS, st.sampled_from([Stance(), LEAVE]))
def test_from_wherever_it_is_a_stop_ends_it(steps: list[str | Moved], seen: CardView, stance: Stance) -> None:
    play = played(steps, seen)
    done = driven(play, [*play.do("stance", stance), *play.do("request", 9, RequestKind.STOP)])
    assert [action for action in done if isinstance(action, Terminate | Kill)]
    assert not play.life.frozen


@given(STEPS, SEENS)
def test_while_others_want_the_card_a_program_is_never_left_between(steps: list[str | Moved], seen: CardView) -> None:
    play = played(steps, seen)
    driven(play, [*play.do("stance", LEAVE), *play.do("request", 9, RequestKind.RESUME)])
    assert play.place in (Place.ON_CARD, Place.IN_RAM, Place.LOST)
    assert play.life.frozen is (play.place is Place.IN_RAM)


def test_what_stands_still_as_a_supervisor_left_it_is_taken_over_and_brought_back(play: Play) -> None:
    life = Lifecycle(
        wanted=Wanted.PAUSED, pause_mode=PauseMode.RELEASE, run_id="r", lease_s=10, memory_limit_bytes=None, is_command=True
    )
    play = Play(life)
    found = play.do("start", leftover=True, stands=True, off_card_pids=(42, 43))
    assert Kill() not in found
    assert OUT in found, "it is to be in RAM, and the driver is asked whether it is"
    assert Thaw() in found
    assert Freeze() in play.do("card_moved", IN_RAM)
    assert BACK in play.do("request", 1, RequestKind.RESUME)
    assert answer(play.do("card_moved", ON_CARD)).ok
    assert Terminate() in play.do("request", 2, RequestKind.STOP)
    assert life.is_of_another
    play.do("exit", None, 0)
    assert life.state is RunState.STOPPED


def test_one_that_ends_under_another_supervisor_is_not_begun_anew(play: Play) -> None:
    life = Lifecycle(
        wanted=Wanted.RUNNING, pause_mode=PauseMode.HOLD, run_id="r", lease_s=10, memory_limit_bytes=None, is_command=True
    )
    play = Play(life)
    assert Thaw() in play.do("start", leftover=True, stands=True)
    play.do("exit", None, 0)
    assert life.state is RunState.FAILED
    assert "only the supervisor would have known" in str(life.failure)
    assert not play.do("tick", after_s=1000)


def test_one_that_was_attached_is_thawed_to_save_what_it_has_and_leave() -> None:
    life = Lifecycle(
        wanted=Wanted.RUNNING, pause_mode=PauseMode.HOLD, run_id="r", lease_s=10, memory_limit_bytes=None, is_command=True
    )
    found = Play(life).do("start", leftover=True, stands=True, was_attached=True)
    assert Thaw() in found
    assert life.stage is Stage.LEFTOVER
