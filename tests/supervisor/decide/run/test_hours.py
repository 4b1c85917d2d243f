"""The hours of a run, as events in and actions out: it saves and gives its memory back in time, its place is others' meanwhile,
and it goes on by itself; a person who says otherwise is obeyed.
"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.about import About, Seam
from memsup.shared import messages as m
from memsup.shared.messages import PauseMode, Phase, RequestKind
from memsup.shared.record import Awaited
from memsup.shared.settings import Hours, SettingsError
from memsup.shared.status import RunState, Wanted
from memsup.supervisor.decide.events import By, Event
from memsup.supervisor.decide.run.actions import Answer, ClaimRoom, Freeze, Kill, Record, SaveQueued, SaveWaiver, Spawn, Thaw
from memsup.supervisor.decide.run.hours import LEAST_LEAD_S, MOST_LEAD_S, Clock, check, needed_lead_s, waived
from memsup.supervisor.decide.run.waiting import Fate

from .test_lifecycle import Play, answers, beat, new_life, note

DAY_S, BEGIN_S, END_S = 86400.0, 23 * 3600.0, 7 * 3600.0


def clock(at_unix_s: float, *, ends_only: bool = False) -> Clock:
    """Of hours from 23:00 to 7:00, in a place without a summer."""
    day = (at_unix_s // DAY_S) * DAY_S
    ends, begins = [day + n * DAY_S + END_S for n in (-1, 0, 1)], [day + n * DAY_S + BEGIN_S for n in (-1, 0, 1)]
    next_begin = min(one for one in begins if one > at_unix_s)
    next_end = min(one for one in ends if one > at_unix_s)
    return Clock(
        at_unix_s=at_unix_s,
        began_unix_s=None if ends_only else max(one for one in begins if one <= at_unix_s),
        begins_unix_s=None if ends_only else next_begin,
        begins=None if ends_only else "Sun 23:00",
        ended_unix_s=max(one for one in ends if one <= at_unix_s),
        ends_unix_s=next_end,
        ends="Sun 07:00",
        hours="until 07:00" if ends_only else "23:00 to 07:00",
    )


NIGHT, ALMOST, DAY, NEXT_NIGHT = 2 * DAY_S, 2 * DAY_S + END_S - 30, 2 * DAY_S + 12 * 3600.0, 2 * DAY_S + BEGIN_S


def at_night(**changes: object) -> Play:
    return Play(new_life(clock=clock(NIGHT), checkpoint=note(3), **changes)).training()


def has_left(play: Play, step: int = 5) -> None:
    """The worker does what it is told, and is gone."""
    play.obey(checkpoint=note(step))
    play.do("report", m.Leaving(reason="told", checkpoint=note(step)))
    play.do("exit", 0, 0)


def test_it_leaves_before_its_hours_end_gives_up_its_place_and_finds_it_anew() -> None:
    play = at_night()
    play.do("hours", clock(ALMOST - 300))
    assert (play.life.state, play.seen) == (RunState.RUNNING, [])
    play.do("hours", clock(ALMOST))
    assert play.life.state is RunState.PAUSING
    line = play.record(Event.HOURS_END)
    assert (line.by, line.action) == (By.HOURS, "pause until Sun 23:00, by its hours (23:00 to 07:00)")
    assert [order.mode for order in play.orders() if isinstance(order, m.Pause)] == [PauseMode.RELEASE]
    play.do("hours", clock(ALMOST + 2))
    assert play.orders() == [], "it is told once"
    play.do("report", m.Leaving(reason="told", checkpoint=note(5)))
    play.do("exit", 0, 0)
    assert (play.life.state, play.life.wanted) == (RunState.PAUSED, Wanted.RUNNING)
    assert play.record(Event.LEFT).by is By.HOURS
    assert SaveQueued(()) in play.seen, "others may have its room meanwhile"
    play.seen.clear()
    play.do("hours", clock(DAY))
    play.do("awaited", {}, DAY)
    assert play.seen == []
    play.do("hours", clock(NEXT_NIGHT))
    assert play.record(Event.HOURS_BEGIN).by is By.HOURS
    assert play.seen[-1] == ClaimRoom()
    assert play.life.state is RunState.WAITING
    play.do("room", "There is none.")
    assert (play.life.state, play.life.waits) == (RunState.WAITING, "for room beside other runs")
    play.seen.clear()
    play.do("hours", clock(NEXT_NIGHT + 1))
    play.do("awaited", {}, NEXT_NIGHT + 1)
    assert play.seen.count(ClaimRoom()) == 1, "it looks at the machine once a second"
    play.do("room", None)
    assert play.seen[-1] == Spawn()


def test_it_is_told_so_early_that_the_save_is_done_in_time() -> None:
    """By what the last one took, and a step."""
    assert needed_lead_s(0.0, 0.0) == LEAST_LEAD_S
    assert needed_lead_s(100.0, 10.0) == LEAST_LEAD_S + 220
    assert LEAST_LEAD_S < needed_lead_s(None, None) < needed_lead_s(1e9, None) == MOST_LEAD_S
    play = at_night()
    play.do("report", msgspec.structs.replace(beat(), checkpoint=msgspec.structs.replace(note(4), save_s=600.0)))
    play.do("hours", clock(2 * DAY_S + END_S - 1300))
    assert play.life.state is RunState.RUNNING
    play.do("hours", clock(2 * DAY_S + END_S - 1250))
    assert play.life.state is RunState.PAUSING


@pytest.mark.parametrize("begins_with", [DAY, ALMOST - 120, ALMOST])
def test_a_supervisor_that_begins_outside_of_the_hours_starts_nothing(begins_with: float) -> None:
    """Nor shortly before they end. So it is after a reboot, a kill, and a machine that slept."""
    play = Play(new_life(clock=clock(begins_with), checkpoint=note(3)))
    play.do("start", leftover=False)
    assert (play.life.state, Spawn() in play.seen) == (RunState.PAUSED, False)
    assert SaveQueued(()) in play.seen
    again = Play(new_life(clock=clock(NEXT_NIGHT + 60), queued=(), checkpoint=note(3)))
    again.do("start", leftover=False)
    again.do("awaited", {}, NEXT_NIGHT + 60)
    again.do("room", None)
    assert again.seen[-1] == Spawn()


def test_who_resumes_it_is_obeyed_until_the_hours_end_next() -> None:
    play = at_night()
    play.do("hours", clock(ALMOST))
    has_left(play)
    play.do("hours", clock(DAY))
    play.seen.clear()
    play.do("request", 1, RequestKind.RESUME)
    assert SaveWaiver(DAY) in play.seen
    assert play.record(Event.HOURS_BEGIN).by is By.USER
    assert ClaimRoom() in play.seen
    assert answers(play.seen) == [], "nothing is said before it is known whether there is room"
    play.do("room", None)
    assert play.seen[-1] == Spawn()
    play.do("spawned")
    play.do("report", m.Hello(pid=42, run_id="r"))
    play.do("report", beat())
    assert answers(play.seen) == [(1, True)]
    for at in (DAY + 60, NEXT_NIGHT - 60, NEXT_NIGHT + 60, NEXT_NIGHT + 8 * 3600 - 400):
        play.do("hours", clock(at))
        assert play.life.state is RunState.RUNNING
    play.do("hours", clock(NEXT_NIGHT + 8 * 3600 - 30))
    assert play.life.state is RunState.PAUSING


def test_who_resumes_it_as_its_hours_end_has_it_go_on_after_that() -> None:
    """While it saves, and when it is about to leave."""
    play = at_night()
    play.do("hours", clock(ALMOST))
    play.do("request", 1, RequestKind.RESUME)
    assert SaveWaiver(2 * DAY_S + END_S) in play.seen
    has_left(play)
    assert play.seen[-1] == Spawn()
    play.do("hours", clock(ALMOST + 10))
    play.do("hours", clock(DAY))
    assert play.life.rest is None


def test_a_pause_of_a_persons_own_outlasts_the_hours_and_gives_its_memory_back_at_their_end() -> None:
    play = at_night()
    play.do("request", 1, RequestKind.PAUSE_HOLD)
    play.obey()
    play.do("report", beat(Phase.HOLDING))
    assert play.life.state is RunState.PAUSED
    play.do("hours", clock(ALMOST))
    assert [order.mode for order in play.orders() if isinstance(order, m.Pause)] == [PauseMode.RELEASE]
    play.do("report", m.Leaving(reason="told", checkpoint=note(5)))
    play.do("exit", 0, 0)
    play.do("hours", clock(NEXT_NIGHT))
    play.do("awaited", {}, NEXT_NIGHT)
    assert (play.life.state, ClaimRoom() in play.seen) == (RunState.PAUSED, False)
    play.do("request", 2, RequestKind.RESUME)
    assert play.seen[-1] == ClaimRoom()
    play.do("room", None)
    assert play.seen[-1] == Spawn()


def test_what_cannot_be_saved_is_frozen_and_keeps_its_room() -> None:
    """A command that is not attached; an attached one leaves as the built-in training does."""
    play = Play(new_life(clock=clock(NIGHT), is_command=True))
    play.do("start", leftover=False)
    play.do("spawned")
    play.do("hours", clock(ALMOST))
    assert Freeze() in play.seen
    assert play.life.state is RunState.PAUSED
    assert not any(isinstance(action, SaveQueued) for action in play.seen)
    play.do("hours", clock(NEXT_NIGHT))
    assert Thaw() in play.seen
    assert play.life.state is RunState.RUNNING
    assert not any(isinstance(action, ClaimRoom | Kill) for action in play.seen)
    play.seen.clear()
    play.do("report", m.Hello(pid=42, run_id="r", program=About(seam=Seam.CALLS)))
    play.do("report", beat())
    play.do("hours", clock(NEXT_NIGHT + 8 * 3600 - 30))
    assert play.life.state is RunState.PAUSING
    has_left(play)
    assert (play.life.state, Freeze() in play.seen) == (RunState.PAUSED, False)


def test_a_worker_that_cannot_save_stays_and_holds_until_it_can_or_the_hours_begin() -> None:
    play = at_night()
    play.do("hours", clock(ALMOST))
    (order,) = play.orders()
    play.do("report", m.OrderFailed(order_id=order.order_id, detail="The disk is full."))
    assert play.life.leaving.cannot == "The disk is full."
    play.do("hours", clock(DAY), after_s=60)
    assert [type(order) for order in play.orders()].count(m.Pause) >= 1
    play.do("hours", clock(NEXT_NIGHT))
    assert play.life.leaving.cannot is None
    assert play.life.rest is None


def test_hours_with_an_end_alone_end_once_and_a_person_has_it_go_on() -> None:
    play = Play(new_life(clock=clock(NIGHT, ends_only=True), waived_unix_s=NIGHT - 60, checkpoint=note(3))).training()
    play.do("hours", clock(ALMOST, ends_only=True))
    assert play.record(Event.HOURS_END).action == "pause until you resume it, by its hours (until 07:00)"
    has_left(play)
    play.do("hours", clock(NEXT_NIGHT + 3600, ends_only=True))
    play.do("awaited", {}, NEXT_NIGHT + 3600)
    assert play.life.state is RunState.PAUSED
    play.do("request", 1, RequestKind.RESUME)
    play.do("room", None)
    assert play.seen[-1] == Spawn()


def test_hours_that_are_given_to_a_run_that_is_up_count_at_once() -> None:
    play = Play(new_life(waived_unix_s=DAY - 60)).training()  # as of a start with other hours, or a person who waived those
    play.do("hours", clock(DAY), given=True)
    assert play.life.state is RunState.PAUSING
    assert SaveWaiver(None) in play.seen
    has_left(play)
    play.do("hours", None, given=True)
    assert play.seen[-1] == ClaimRoom(), "and are taken away again"
    ends_only = Play(new_life()).training()
    ends_only.do("hours", clock(DAY, ends_only=True), given=True)
    assert SaveWaiver(DAY) in ends_only.seen, "an end alone counts from then on"
    assert ends_only.life.state is RunState.RUNNING


def test_a_queued_run_waits_for_the_others_and_for_its_hours() -> None:
    first = Awaited(run="a", run_id="1")
    play = Play(new_life(clock=clock(DAY), queued=(first,)))
    play.do("start", leftover=False)
    assert play.life.state is RunState.WAITING
    assert play.life.waits == "until Sun 23:00, by its hours (23:00 to 07:00) and for run 'a'"
    play.do("awaited", {"a": Fate.FINISHED}, DAY)
    assert (play.life.state, ClaimRoom() in play.seen) == (RunState.PAUSED, False)
    play.do("request", 1, RequestKind.STOP)
    (answer,) = [action for action in play.seen if isinstance(action, Answer)]
    assert "it waited until Sun 23:00" in answer.text
    assert "Start it again with" in answer.text


def test_a_clock_that_was_set_back_waives_no_hours_for_longer_than_to_their_next_end() -> None:
    play = at_night(waived_unix_s=NIGHT + 400 * DAY_S)
    play.do("hours", clock(DAY))
    assert SaveWaiver(DAY) in play.seen
    play.do("hours", clock(NEXT_NIGHT + 8 * 3600))
    assert play.life.rest is not None


_EVENTS = st.one_of(
    st.sampled_from([RequestKind.PAUSE_HOLD, RequestKind.PAUSE_RELEASE, RequestKind.RESUME]),
    st.sampled_from(["leave", "room", "no room", "tick"]),
    st.integers(0, 5 * 96).map(lambda quarter: quarter * 900.0),
)


@given(st.lists(_EVENTS, max_size=40), st.booleans())
def test_whatever_happens_no_worker_is_begun_outside_of_the_hours(happens: list[object], ends_only: bool) -> None:
    """But for a person; also where the clock is set to and fro. Each state may follow the one before."""
    play = Play(new_life(clock=clock(NIGHT, ends_only=ends_only), waived_unix_s=NIGHT, checkpoint=note(3))).training()
    for number, what in enumerate(happens):
        before = len(play.seen)
        match what:
            case RequestKind():
                play.do("request", number, what)
            case "leave" if play.life.worker.is_alive and play.life.leaving.told:
                has_left(play)
                before = 0
            case "room" | "no room" if play.life.queued is not None and play.life.is_its_turn:
                play.do("room", None if what == "room" else "There is none.")
            case "tick":
                play.do("tick", after_s=1.0)
            case float() as at:
                play.do("hours", clock(at, ends_only=ends_only))
                play.do("awaited", {}, at)
        if Spawn() in play.seen[before:]:
            assert play.life.rest is None
            assert play.life.queued is None
            play.do("spawned")
            play.do("report", m.Hello(pid=42, run_id="r"))
            play.do("report", beat())
        if play.life.rest is not None and play.life.stage.name == "NONE":
            assert play.life.queued == ()
    play.do("hours", clock(DAY, ends_only=ends_only), given=True)
    play.do("request", 1000, RequestKind.RESUME)
    assert play.life.rest is None


def test_hours_that_make_no_sense_are_refused() -> None:
    for hours, why in ((Hours(begin="23:00"), "needs hours.end"), (Hours(begin="7:00", end="7:00"), "begin and end at 7:00")):
        with pytest.raises(SettingsError, match=why):
            check(hours)
    for begin, end in (("7:00", "07:00"), ("24:00", "0:00")):
        with pytest.raises(SettingsError, match=f"begin and end at {end}"):
            check(Hours(begin=begin, end=end))
    check(Hours(begin="23:00", end="24:00"))
    check(Hours())
    check(Hours(end="07:00"))
    assert waived(clock(DAY), 60.0) == DAY


def test_the_ledger_has_nothing_of_hours_where_there_are_none() -> None:
    play = Play(new_life()).training()
    play.do("hours", None)
    assert not [action for action in play.seen if isinstance(action, Record)]
