"""Histories of a run as events in, actions out: what the user wants, what the worker does, what the ladder asks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.statuses import EVALUATION

from memsup.shared import messages as m
from memsup.shared.messages import PauseMode, Phase, RequestKind
from memsup.shared.readings import KnownProgress
from memsup.shared.record import Awaited, NotBefore
from memsup.shared.status import OVER, STATE_MOVES, RunState, Wanted
from memsup.supervisor.decide.events import By, Event, Move, OrderKind, Outcome
from memsup.supervisor.decide.ladder import HoldReason, LadderState, MemoryLimits, Rung, Stance
from memsup.supervisor.decide.run.actions import (
    Action,
    Answer,
    ClaimRoom,
    Freeze,
    Kill,
    Quit,
    Record,
    SaveQueued,
    SaveWish,
    Send,
    Spawn,
    Terminate,
    Thaw,
)
from memsup.supervisor.decide.run.freed import GivenBack
from memsup.supervisor.decide.run.leaving import AGAIN_AFTER_S
from memsup.supervisor.decide.run.lifecycle import Lifecycle
from memsup.supervisor.decide.run.one_life import MOVES, SILENT_FOR_EVER_S, Attachment, OneLife, Stage
from memsup.supervisor.decide.run.restarts import BUDGET, Cause
from memsup.supervisor.decide.run.standing import MOST_DAMAGE_TOLD
from memsup.supervisor.decide.run.tuning import Tuning
from memsup.supervisor.decide.run.waiting import Fate


def new_life(**changes: object) -> Lifecycle:
    values: dict[str, object] = {
        "wanted": Wanted.RUNNING,
        "pause_mode": PauseMode.HOLD,
        "run_id": "r",
        "lease_s": 10.0,
        "memory_limit_bytes": 1 << 30,
    }
    return Lifecycle(**(values | changes))  # type: ignore[arg-type]


def beat(phase: Phase = Phase.TRAINING, *, ticks: int = 1, step: int = 5, micro_tokens: int = 1024) -> m.Heartbeat:
    progress = m.Progress(
        phase=phase, ticks=ticks, epoch=0.1, step=step, total_steps=100, samples=80, loss=0.5, samples_per_s=9.0, eta_s=60.0
    )
    memory = m.WorkerMemory(resident_bytes=1, cuda_allocated_bytes=None, cuda_reserved_bytes=None, data_limit_bytes=None)
    batch = m.BatchShape(effective=16, micro_tokens=micro_tokens, micro_rows=8)
    return m.Heartbeat(progress=progress, batch=batch, memory=memory, checkpoint=None, digest=None)


def note(step: int) -> m.CheckpointNote:
    return m.CheckpointNote(path=f"/c/step-{step}", step=step, at_unix_s=1.0, verified=True, save_s=0.1)


HELLO = m.Hello(pid=42, run_id="r")


@dataclass
class Play:
    """A lifecycle, a clock, and everything it asked for since the last look."""

    life: Lifecycle
    now_s: float = 0.0
    seen: list[Action] = field(default_factory=list)

    def do(self, event: str, *args: object, after_s: float = 0.0, **kwargs: object) -> list[Action]:
        self.now_s += after_s
        before = self.life.state
        actions: list[Action] = getattr(self.life, f"on_{event}")(self.now_s, *args, **kwargs)
        after = self.life.state
        assert after is before or after in STATE_MOVES[before], f"{before} → {after} on {event}"
        self.seen += actions
        return actions

    def wait(self, seconds: float) -> list[Action]:
        """Lets time pass, with a tick each second; returns what was done in all of them."""
        done = []
        for _ in range(math.ceil(seconds)):
            done += self.do("tick", after_s=seconds / math.ceil(seconds))
        return done

    def training(self) -> Play:
        self.do("start", leftover=False)
        self.do("spawned")
        self.do("report", HELLO)
        self.do("report", beat())
        self.seen.clear()
        return self

    def orders(self) -> list[m.AnyOrder]:
        """The orders sent since the last call."""
        sent = [a.message for a in self.seen if isinstance(a, Send) and isinstance(a.message, m.Order)]
        self.seen.clear()
        return sent  # type: ignore[return-value]

    def record(self, event: Event) -> Record:
        """The one record of `event` since the last look."""
        (found,) = [a for a in self.seen if isinstance(a, Record) and a.event is event]
        return found

    def obey(self, **done: object) -> list[Action]:
        """The worker accepts and carries out every order of the last batch."""
        actions: list[Action] = []
        for order in self.orders():
            actions += self.do("report", m.Accepted(order_id=order.order_id))
            actions += self.do("report", m.Done(order_id=order.order_id, detail="done", **done))  # type: ignore[arg-type]
        return actions


def answers(actions: list[Action]) -> list[tuple[int, bool]]:
    return [(a.token, a.ok) for a in actions if isinstance(a, Answer)]


def test_a_run_starts_welcomes_its_worker_and_runs() -> None:
    play = Play(new_life())
    assert Spawn() in play.do("start", leftover=False)
    assert play.life.state is RunState.STARTING
    play.do("spawned")
    welcome = play.do("report", HELLO)
    assert welcome == [Send(m.Welcome(run_id="r", lease_s=10.0, memory_limit_bytes=1 << 30, micro_tokens_limit=None))]
    play.do("report", beat(Phase.LOADING))
    assert play.life.state is RunState.STARTING
    play.do("report", beat())
    assert play.life.state is RunState.RUNNING


def test_pause_is_done_when_the_worker_says_so_and_resume_continues() -> None:
    play = Play(new_life()).training()
    assert play.life.is_settled
    play.do("request", 7, RequestKind.PAUSE_HOLD)
    assert not play.life.is_settled
    assert SaveWish(Wanted.PAUSED, PauseMode.HOLD) in play.seen
    assert play.life.state is RunState.PAUSING
    assert answers(play.obey()) == [(7, True)]
    assert play.life.state is RunState.PAUSED
    assert play.life.is_settled
    play.do("report", beat(Phase.HOLDING))
    play.do("request", 8, RequestKind.RESUME)
    assert answers(play.obey()) == [(8, True)]
    play.do("report", beat(ticks=2))
    assert play.life.state is RunState.RUNNING


def test_cooling_down_never_undoes_a_pause_that_a_person_asked_for() -> None:
    play = Play(new_life()).training()
    play.do("request", 1, RequestKind.PAUSE_HOLD)
    play.obey()
    play.do("stance", Stance(rung=Rung.HOLD, holds=frozenset({HoldReason.HEAT}), reason="hot"))
    play.do("stance", Stance(), after_s=60)
    assert play.orders() == []
    assert play.life.state is RunState.PAUSED


def test_a_person_who_resumes_is_told_that_heat_still_holds() -> None:
    play = Play(new_life()).training()
    play.do("request", 1, RequestKind.PAUSE_HOLD)
    play.obey()
    play.do("stance", Stance(rung=Rung.HOLD, holds=frozenset({HoldReason.HEAT}), reason="GPU 0 is at 92 °C"))
    (answer,) = [a for a in play.do("request", 2, RequestKind.RESUME) if isinstance(a, Answer)]
    assert answer.ok
    assert "92 °C" in answer.text
    assert play.life.state is RunState.COOLING


def test_release_lets_the_process_go_and_resume_starts_another() -> None:
    play = Play(new_life()).training()
    play.do("request", 1, RequestKind.PAUSE_RELEASE)
    (order,) = play.orders()
    assert isinstance(order, m.Pause)
    assert order.mode is PauseMode.RELEASE
    play.do("report", m.Leaving(reason="pause with release", checkpoint=note(6)))
    assert answers(play.do("exit", 0, 0)) == [(1, True)]
    assert play.life.state is RunState.PAUSED
    assert play.life.restarts == 0
    play.do("tick", after_s=3600)
    assert Spawn() not in play.seen, "it stays paused"
    assert Spawn() in play.do("request", 2, RequestKind.RESUME)


def test_a_run_that_was_paused_stays_paused_in_a_new_supervisor() -> None:
    play = Play(new_life(wanted=Wanted.PAUSED))
    assert play.do("start", leftover=False) == []
    assert play.life.state is RunState.PAUSED


def test_nothing_is_started_beside_a_worker_that_a_dead_supervisor_left() -> None:
    play = Play(new_life())
    assert Spawn() not in play.do("start", leftover=True)
    assert Spawn() in play.do("exit", None, 0, after_s=20)


def test_what_a_command_has_left_running_is_told_of_once_and_only_where_it_lasts() -> None:
    play = Play(new_life(is_command=True))
    play.do("start", leftover=False)
    play.do("spawned")
    assert play.do("outlived", 2, after_s=1) == []
    for _ in range(3):
        play.do("outlived", 2, after_s=4)
    told = play.record(Event.OUTLIVED)
    assert "2 processes that it has left still run" in told.reason
    assert play.life.state is RunState.RUNNING


def test_a_command_that_was_begun_anew_runs_and_does_not_recover_for_ever() -> None:
    play = Play(new_life(is_command=True))
    play.do("start", leftover=False)
    play.do("spawned")
    play.do("exit", -9, 0)
    assert play.life.state is RunState.RECOVERING
    assert Spawn() in play.do("tick", after_s=60)
    play.do("spawned")
    assert play.life.state is RunState.RUNNING
    assert play.life.is_settled


def test_a_command_that_a_dead_supervisor_left_is_ended_at_once_and_begun_anew() -> None:
    play = Play(new_life(is_command=True))
    actions = play.do("start", leftover=True)
    assert Kill() in actions
    assert Spawn() not in actions
    assert Spawn() in play.do("exit", None, 0)


def test_kill_9_of_the_worker_goes_on_from_the_checkpoint_after_a_moment() -> None:
    play = Play(new_life()).training()
    play.do("exit", -9, 0)
    assert play.life.state is RunState.RECOVERING
    assert Spawn() not in play.seen
    assert play.life.restarts == 0, "it may be stopped before"
    assert Spawn() in play.do("tick", after_s=1.1)
    play.do("spawned")
    assert play.life.restarts == 1
    (welcome,) = [a.message for a in play.do("report", HELLO) if isinstance(a, Send)]
    assert isinstance(welcome, m.Welcome)
    assert welcome.deaths == 1, "who dies often saves more often"
    assert play.life.state is RunState.RECOVERING
    play.do("report", beat(ticks=3))
    assert play.life.state is RunState.RUNNING
    assert play.life.restarts == 1


@pytest.mark.parametrize("what", list(m.DecisionKind))
def test_what_the_worker_decides_by_itself_is_on_record(what: m.DecisionKind) -> None:
    play = Play(new_life()).training()
    said = m.Decided(what=what, detail="As it is.", checkpoint="/c/damaged-step-00000005", step=5, rows=2)
    (line,) = [action for action in play.do("report", said) if isinstance(action, Record)]
    assert (line.event, line.by, line.reason) == (Event(what), By.WORKER, "As it is.")
    assert (line.checkpoint, line.checkpoint_step, line.rows) == ("/c/damaged-step-00000005", 5, 2)


def test_a_death_for_memory_starts_smaller_and_no_other_death_does() -> None:
    play = Play(new_life()).training()
    play.do("exit", -9, 1)
    assert play.life.micro_tokens_limit == 512
    other = Play(new_life()).training()
    other.do("exit", -11, 0)
    assert other.life.micro_tokens_limit is None


def test_dying_again_and_again_without_a_new_checkpoint_is_given_up() -> None:
    play = Play(new_life()).training()
    for _ in range(BUDGET + 1):
        play.do("exit", -11, 0)
        play.do("tick", after_s=100)
        play.do("spawned")
    assert play.life.state is RunState.FAILED
    assert Quit() in play.seen
    assert "SIGSEGV" in (play.life.failure or "")


def test_bad_input_is_told_and_not_tried_again() -> None:
    play = Play(new_life()).training()
    play.do("report", m.Failed(cause=m.FailureCause.BAD_INPUT, message="Line 7 has 3 fields instead of 2."))
    play.do("exit", 1, 0)
    assert play.life.state is RunState.FAILED
    assert play.life.failure == "Line 7 has 3 fields instead of 2."


def test_a_lost_gpu_is_told_and_no_restart_loop_follows() -> None:
    play = Play(new_life()).training()
    play.do("report", m.Failed(cause=m.FailureCause.CRASH, message="CUDA error: unspecified launch failure"))
    play.do("exit", 1, 0, "GPU 0 (RTX 3060) is lost: only a reboot brings it back.")
    assert play.life.state is RunState.FAILED
    assert "only a reboot" in (play.life.failure or "")


def test_where_the_settings_allow_it_a_run_whose_gpu_is_lost_goes_on_on_the_cpu_and_later_deaths_are_deaths_again() -> None:
    lost = "GPU 0 (RTX 3060) is lost: only a reboot brings it back."
    play = Play(new_life(continue_on_cpu=True)).training()
    play.do("exit", -6, 0, lost)
    assert play.life.restarts == 0
    assert Spawn() in play.do("tick", after_s=5)
    play.do("spawned")
    assert play.life.restarts == 1
    play.seen.clear()
    play.do("report", HELLO)
    assert [action.message.on_cpu for action in play.seen if isinstance(action, Send)] == [True]
    for _ in range(BUDGET):
        play.do("exit", -9, 0, lost)
        if play.life.terminal is None:
            play.do("tick", after_s=100)
            play.do("spawned")
    assert play.life.terminal is RunState.FAILED
    assert "killed by SIGKILL" in (play.life.failure or "")


def test_memory_hold_pauses_saves_and_resumes() -> None:
    play = Play(new_life()).training()
    play.do("stance", Stance(rung=Rung.HOLD, holds=frozenset({HoldReason.MEMORY}), may_grow=False, reason="96 %"))
    orders = play.orders()
    assert [type(o) for o in orders] == [m.Pause, m.Checkpoint, m.LimitMicroBatch]
    play.do("report", m.Done(order_id=orders[0].order_id, detail="holding"))
    play.do("report", beat(Phase.HOLDING, ticks=2))
    assert play.life.state is RunState.RECOVERING
    play.do("report", beat(Phase.SAVING, ticks=3))
    assert play.orders() == [], "it holds while it saves, and is not told so again"


def test_a_runaway_is_frozen_then_killed_and_started_smaller() -> None:
    play = Play(new_life()).training()
    assert Freeze() in play.do("stance", Stance(rung=Rung.FREEZE, freeze=True, reason="97 %"))
    assert Kill() in play.do("stance", Stance(rung=Rung.KILL, freeze=True, kill=True, reason="98 %"))
    assert Kill() not in play.do("stance", Stance(rung=Rung.KILL, freeze=True, kill=True, reason="98 %")), "once"
    play.do("exit", -9, 0)
    assert play.life.micro_tokens_limit == 512
    assert not play.life.frozen


def test_a_thaw_follows_a_freeze_that_is_over() -> None:
    play = Play(new_life()).training()
    play.do("stance", Stance(rung=Rung.FREEZE, freeze=True))
    assert Thaw() in play.do("stance", Stance(rung=Rung.SHRINK))


def test_stop_checkpoints_leaves_and_quits() -> None:
    play = Play(new_life()).training()
    play.do("request", 3, RequestKind.STOP)
    (order,) = play.orders()
    assert isinstance(order, m.Stop)
    assert order.checkpoint
    assert play.life.state is RunState.STOPPING
    play.do("report", m.Leaving(reason="stop", checkpoint=note(6)))
    actions = play.do("exit", 0, 0)
    assert answers(actions) == [(3, True)]
    assert Quit() in actions
    assert play.life.state is RunState.STOPPED


def test_a_worker_that_does_not_carry_out_a_stop_is_killed() -> None:
    play = Play(new_life()).training()
    play.do("request", 3, RequestKind.STOP)
    actions = play.do("tick", after_s=11)
    assert Kill() in actions
    play.do("exit", -9, 0)
    assert play.life.state is RunState.STOPPED


FULL = "The checkpoint could not be written: the disk is full."


def refuse(play: Play) -> tuple[m.AnyOrder, list[Action]]:
    """The worker cannot save, and stays; what it was told, and what follows."""
    (order,) = play.orders()
    return order, play.do("report", m.OrderFailed(order_id=order.order_id, detail=FULL))


def test_a_stop_whose_checkpoint_fails_holds_says_why_and_is_tried_until_it_can_be_saved() -> None:
    play = Play(new_life()).training()
    play.do("request", 3, RequestKind.STOP)
    stop, actions = refuse(play)
    assert isinstance(stop, m.Stop)
    (answer,) = [a for a in actions if isinstance(a, Answer)]
    assert not answer.ok
    assert FULL in answer.text
    assert "memsup stop --now" in answer.text
    assert FULL in (play.life.leaving.sentence(None, "night") or "")
    (hold,) = play.orders()
    assert isinstance(hold, m.Pause)
    assert hold.mode is PauseMode.HOLD
    play.do("report", m.Done(order_id=hold.order_id, detail="holding"))
    play.do("report", beat(Phase.HOLDING, ticks=2), after_s=10)
    play.do("tick", after_s=AGAIN_AFTER_S - 11)
    assert play.orders() == []
    assert play.life.state is RunState.STOPPING
    play.do("tick", after_s=1)
    again, actions = refuse(play)
    assert isinstance(again, m.Stop)
    assert again.checkpoint
    assert not any(isinstance(a, Record) for a in actions), "it is told once"
    play.do("tick", after_s=AGAIN_AFTER_S)
    play.obey()
    play.do("report", m.Leaving(reason="stop", checkpoint=note(6)))
    assert Quit() in play.do("exit", 0, 0)
    assert play.life.state is RunState.STOPPED
    assert play.life.leaving.sentence(None, "night") is None


def test_a_command_that_is_suggested_names_the_run_that_it_is_about() -> None:
    """Typed as it stands, `memsup stop --now` would throw away what another run, `default`, has learnt."""
    play = Play(new_life(run="night")).training()
    play.do("request", 1, RequestKind.PAUSE_HOLD)
    (paused,) = [a for a in play.obey() if isinstance(a, Answer)]
    assert paused.text.endswith("Continue with: memsup resume --run night")
    play.do("request", 2, RequestKind.STOP)
    _, actions = refuse(play)
    (refused,) = [a for a in actions if isinstance(a, Answer)]
    assert refused.text.endswith("memsup stop --run night --now")


def test_who_asks_again_after_making_room_does_not_wait() -> None:
    play = Play(new_life()).training()
    play.do("request", 3, RequestKind.STOP)
    refuse(play)
    play.orders()
    assert answers(play.do("request", 4, RequestKind.STOP, after_s=1)) == []
    (stop,) = play.orders()
    assert isinstance(stop, m.Stop)


def test_stop_now_ends_a_run_that_cannot_be_saved() -> None:
    play = Play(new_life()).training()
    play.do("request", 3, RequestKind.STOP)
    refuse(play)
    assert Kill() in play.do("request", 4, RequestKind.STOP_NOW)
    assert answers(play.do("exit", -9, 0)) == [(4, True)]
    assert play.life.state is RunState.STOPPED


@pytest.mark.parametrize("stopped_first", [False, True])
def test_at_a_shutdown_nobody_makes_room_and_the_newest_checkpoint_holds(stopped_first: bool) -> None:
    play = Play(new_life()).training()
    if stopped_first:
        play.do("request", 3, RequestKind.STOP)
        refuse(play)
        play.orders()
    play.do("terminate", forget=False)
    stop, _ = refuse(play)
    assert isinstance(stop, m.Stop)
    assert stop.checkpoint
    (without,) = play.orders()
    assert isinstance(without, m.Stop)
    assert not without.checkpoint


@pytest.mark.parametrize("instead", [RequestKind.RESUME, RequestKind.PAUSE_HOLD])
def test_a_release_that_cannot_be_saved_is_given_up_when_it_is_no_longer_wanted(instead: RequestKind) -> None:
    play = Play(new_life()).training()
    play.do("request", 3, RequestKind.PAUSE_RELEASE)
    release, actions = refuse(play)
    assert isinstance(release, m.Pause)
    assert answers(actions) == [(3, False)]
    play.obey()
    play.do("report", beat(Phase.HOLDING, ticks=2))
    actions = play.do("request", 4, instead)
    if instead is RequestKind.RESUME:
        actions = play.obey()
    assert answers(actions) == [(4, True)]
    play.do("tick", after_s=10)
    assert play.orders() == []
    assert play.life.state is (RunState.RUNNING if instead is RequestKind.RESUME else RunState.PAUSED)


def test_memory_that_others_need_no_longer_is_kept_by_a_worker_that_could_not_leave() -> None:
    play = Play(new_life()).training()
    play.do("stance", Stance(rung=Rung.HOLD, holds=frozenset({HoldReason.MEMORY}), release=True))
    order, _ = refuse(play)
    assert isinstance(order, m.Pause)
    assert order.mode is PauseMode.RELEASE
    play.orders()
    play.do("report", beat(Phase.HOLDING, ticks=2))
    play.do("stance", Stance())
    assert [type(order) for order in play.orders()] == [m.Resume]


def test_a_silent_worker_is_no_longer_trusted_with_orders_and_later_replaced() -> None:
    play = Play(new_life()).training()
    play.wait(16)
    assert play.life.unresponsive
    assert not play.life.view().takes_orders
    assert Kill() in play.wait(SILENT_FOR_EVER_S)


@pytest.mark.parametrize("stood_still_s", [10.0, 600.0, 86_400.0])
def test_time_in_which_the_supervisor_stood_still_is_no_silence(stood_still_s: float) -> None:
    """A container was paused, or a virtual machine stopped: nobody ran, so nobody could say anything."""
    play = Play(new_life()).training()
    play.wait(10)
    play.do("request", 4, RequestKind.CHECKPOINT)
    play.do("tick", after_s=stood_still_s)
    assert not play.life.unresponsive
    assert answers(play.wait(3)) == [], "an answer may still come as late as ever"
    assert Kill() not in play.wait(SILENT_FOR_EVER_S - 16)
    assert Kill() in play.wait(5), "and then it counts"


def test_an_order_that_is_not_answered_is_never_taken_for_done() -> None:
    play = Play(new_life()).training()
    play.do("request", 4, RequestKind.CHECKPOINT)
    assert answers(play.do("tick", after_s=11)) == [(4, False)]


def test_a_slow_checkpoint_with_progress_is_waited_for() -> None:
    play = Play(new_life()).training()
    play.do("request", 4, RequestKind.CHECKPOINT)
    (order,) = play.orders()
    play.do("report", m.Accepted(order_id=order.order_id))
    for ticks in range(2, 60):
        assert answers(play.do("report", beat(Phase.SAVING, ticks=ticks), after_s=10)) == []
        assert answers(play.do("tick")) == []
    done = m.Done(order_id=order.order_id, detail="written", checkpoint=note(5))
    (answer,) = [a for a in play.do("report", done) if isinstance(a, Answer)]
    assert answer.checkpoint_path == "/c/step-5"


def test_the_machine_going_down_keeps_what_the_user_wants() -> None:
    play = Play(new_life()).training()
    play.do("terminate", forget=False)
    assert not any(isinstance(a, SaveWish) for a in play.seen)
    play.do("report", m.Leaving(reason="stop", checkpoint=note(6)))
    assert Quit() in play.do("exit", 0, 0)


def test_a_foreign_command_is_frozen_for_a_pause_and_asked_to_end_by_signal() -> None:
    play = Play(new_life(is_command=True))
    play.do("start", leftover=False)
    play.do("spawned")
    assert play.life.state is RunState.RUNNING
    assert answers(play.do("request", 1, RequestKind.PAUSE_HOLD)) == [(1, True)]
    assert Freeze() in play.seen
    assert play.life.state is RunState.PAUSED
    assert Thaw() in play.do("request", 2, RequestKind.RESUME)
    assert answers(play.do("request", 3, RequestKind.PAUSE_RELEASE)) == [(3, False)]
    assert Terminate() in play.do("request", 4, RequestKind.STOP)
    assert Kill() in play.do("tick", after_s=11)
    play.do("exit", -9, 0)
    assert play.life.state is RunState.STOPPED


def test_a_foreign_command_that_holding_does_not_help_is_killed_and_begun_anew_when_there_is_room() -> None:
    """Frozen for good it would keep its memory from everybody and never get on."""
    full = {"rung": Rung.HOLD, "holds": frozenset({HoldReason.MEMORY}), "reason": "96 %"}
    play = Play(new_life(is_command=True))
    play.do("start", leftover=False)
    play.do("spawned")
    held = play.do("stance", Stance(**full))  # type: ignore[arg-type]
    assert Freeze() in held
    assert Kill() not in held
    assert Kill() in play.do("stance", Stance(**full, release=True), after_s=20)  # type: ignore[arg-type]
    play.do("exit", -9, 0)
    assert Spawn() not in play.do("tick", after_s=100), "memory is still short"
    assert Spawn() in play.do("stance", Stance(), after_s=1)


@pytest.mark.parametrize(("status", "state"), [(0, RunState.FINISHED), (3, RunState.FAILED)])
def test_a_foreign_commands_exit_code_is_its_outcome(status: int, state: RunState) -> None:
    play = Play(new_life(is_command=True))
    play.do("start", leftover=False)
    play.do("spawned")
    play.do("exit", status, 0)
    assert play.life.state is state
    assert play.life.exit_status == status


def test_whoever_stops_a_run_while_an_earlier_worker_is_leaving_is_obeyed_once_it_is_gone() -> None:
    play = Play(new_life())
    play.do("start", leftover=True)
    assert answers(play.do("request", 1, RequestKind.STOP)) == []
    actions = play.do("exit", None, 0, after_s=20)
    assert answers(actions) == [(1, True)]
    assert Spawn() not in actions
    assert play.life.state is RunState.STOPPED


def test_a_worker_that_cannot_be_started_is_the_end_of_the_run() -> None:
    play = Play(new_life())
    play.do("start", leftover=False)
    assert Quit() in play.do("spawn_failed", "Permission denied: /usr/bin/python3")
    assert (play.life.state, play.life.stage) == (RunState.FAILED, Stage.NONE)
    assert play.record(Event.END).by is By.SUPERVISOR


def test_a_worker_that_cannot_be_started_for_want_of_something_that_may_come_back_is_tried_again() -> None:
    """A machine that has no process left at three in the morning may have one a minute later."""
    play = Play(new_life()).training()
    play.do("exit", -9, 0)
    assert Spawn() in play.do("tick", after_s=60)
    play.do("spawn_failed", "no more processes may run here", may_pass=True)
    assert play.life.terminal is None
    assert play.life.restarts == 0
    assert play.record(Event.NOT_STARTED).reason == "The worker could not be started: no more processes may run here."
    assert play.life.recovery.why_not_begun is not None
    assert Spawn() not in play.do("tick", after_s=0.5)
    assert Spawn() in play.do("tick", after_s=1.0)
    play.do("spawned")
    assert play.life.recovery.why_not_begun is None
    assert play.life.restarts == 1


def test_a_worker_that_cannot_be_started_for_an_hour_is_given_up() -> None:
    play = Play(new_life())
    actions = play.do("start", leftover=False)
    while Quit() not in actions:
        assert play.now_s < 7200
        actions = play.do("spawn_failed", "x", may_pass=True) if Spawn() in actions else play.do("tick", after_s=10)
    assert play.life.state is RunState.FAILED
    assert play.now_s > 3000


# --------------------------------------------------------------------------------------------------------------------
# A new life is a new object


def test_a_new_life_has_nothing_of_the_last_one() -> None:
    """However the last one ended: held and frozen, unresponsive, with orders on their way and after its last words."""
    play = Play(new_life(most_micro_tokens=512)).training()
    play.do("stance", Stance(rung=Rung.HOLD, holds=frozenset({HoldReason.MEMORY}), duty_fraction=0.5, may_grow=False))
    play.do("report", beat(Phase.HOLDING, ticks=2))
    play.do("stance", Stance(rung=Rung.FREEZE, freeze=True))
    play.do("tick", after_s=300)
    play.do("report", m.Leaving(reason="x", checkpoint=None))
    assert play.life.frozen
    assert Spawn() in play.do("exit", 0, 0, after_s=1)
    assert play.life.worker == OneLife(
        stage=Stage.SPAWNED, since_s=play.now_s, heard_at_s=play.now_s, tuning=Tuning(most_micro_tokens=512)
    )


@pytest.mark.parametrize("stage", Stage)
def test_a_worker_makes_no_move_that_is_not_in_the_table(stage: Stage) -> None:
    life = OneLife(stage=stage)
    for other in set(Stage) - MOVES[stage]:
        with pytest.raises(AssertionError):
            life.enter(other, 1.0)
        assert life == OneLife(stage=stage), "an illegal move changes nothing"


def test_from_every_stage_a_life_comes_to_its_end_and_from_every_state_the_run_does() -> None:
    for stage in set(Stage) - {Stage.NONE}:
        assert Stage.NONE in MOVES[stage]
    for state in set(RunState) - set(OVER):
        assert set(OVER) <= STATE_MOVES[state]
    assert not any(STATE_MOVES[state] for state in OVER)


# --------------------------------------------------------------------------------------------------------------------
# Runs that are queued


FIRST, GOOD = Awaited(run="a", run_id="1"), Awaited(run="b", run_id="2", must_finish=True)
LIVES = (Fate.UP, Fate.RESTS, Fate.LEFT)


def queued(*awaited: Awaited) -> Play:
    play = Play(new_life(queued=awaited or (FIRST, GOOD)))
    play.do("start", leftover=False)
    assert play.life.state is RunState.WAITING
    return play


def test_a_queued_run_begins_when_all_before_it_are_over_and_there_is_room() -> None:
    play = queued()
    play.do("awaited", {"a": Fate.UP, "b": Fate.FINISHED}, 0.0)
    assert SaveQueued((FIRST,)) in play.seen
    assert "run 'b' finished; it waits for run 'a'" in [a.reason for a in play.seen if isinstance(a, Record)]
    play.do("awaited", {"a": Fate.LEFT}, 0.0)
    assert play.life.left_behind == ((FIRST, Fate.LEFT),)
    assert ClaimRoom() not in play.seen
    play.do("awaited", {"a": Fate.FAILED}, 0.0)
    assert play.seen[-1] == ClaimRoom()
    play.do("room", "There is none.")
    play.do("room", "There is none.")
    assert [a.reason for a in play.seen if isinstance(a, Record)].count("There is none.") == 1
    assert (play.life.state, Spawn() in play.seen) == (RunState.WAITING, False)
    play.do("awaited", {}, 0.0)
    play.do("room", None)
    assert play.seen[-1] == Spawn()
    assert SaveQueued(None) in play.seen
    assert play.life.state is RunState.STARTING
    play.do("awaited", {}, 0.0)
    assert play.seen[-1] == Spawn(), "what has begun looks at the others no more"


@pytest.mark.parametrize("fate", [Fate.FAILED, Fate.STOPPED, Fate.GONE])
def test_a_run_that_was_to_come_after_a_good_end_says_which_one_had_none(fate: Fate) -> None:
    play = queued()
    play.do("awaited", {"a": Fate.UP, "b": fate}, 0.0)
    assert play.life.terminal is RunState.FAILED
    assert play.life.failure is not None
    assert f"only if run 'b' finished, and that one {fate}" in play.life.failure
    assert SaveQueued(None) in play.seen, "whoever starts it again has it begin"
    assert play.seen[-1] == Quit()


_HAPPENS = st.one_of(
    st.sampled_from([RequestKind.PAUSE_HOLD, RequestKind.PAUSE_RELEASE, RequestKind.RESUME, RequestKind.CHECKPOINT, "tick"]),
    st.sampled_from(["no room", "room"]),
    st.tuples(st.sampled_from([*Fate]), st.sampled_from([*Fate])),
)


@given(st.lists(_HAPPENS, max_size=30), st.sampled_from([RequestKind.STOP, RequestKind.STOP_NOW, None]))
def test_whatever_happens_a_queued_run_begins_once_and_not_before_its_turn(
    happens: list[object], stop: RequestKind | None
) -> None:
    """Each request is answered, and what has ended is waited for no more, whatever becomes of it."""
    play, over, lost, answers = queued(), set[str](), False, 0
    for number, what in enumerate(happens):
        asks_room = False
        before = len(play.seen)
        match what:
            case (Fate() as a, Fate() as b) if play.life.terminal is None and play.life.queued is not None:
                asked = {one.run for one in play.life.queued}
                lost = lost or ("b" in asked and b not in (*LIVES, Fate.FINISHED))
                over |= {name for name, fate in (("a", a), ("b", b)) if name in asked and fate not in LIVES}
                asks_room = ClaimRoom() in play.do("awaited", {"a": a, "b": b}, 0.0)
                assert asks_room == (over == {"a", "b"} and not lost and play.life.wanted is Wanted.RUNNING)
            case "room" | "no room" if play.life.queued == () and play.life.wanted is Wanted.RUNNING:
                play.do("room", None if what == "room" else "There is none.")
            case "tick":
                play.do("tick", after_s=1.0)
            case RequestKind() if play.life.terminal is None and play.life.queued is not None:
                play.do("request", number, what)
                answers += 1
        spawned = Spawn() in play.seen
        assert not spawned or (over == {"a", "b"} and not lost)
        assert not (Spawn() in play.seen[before:] and what != "room")
        assert (play.life.terminal is RunState.FAILED) == lost
        if spawned:
            return
    assert sum(isinstance(action, Answer) for action in play.seen) == answers
    if stop is not None and play.life.terminal is None:
        play.do("request", 99, stop)
        assert play.life.terminal is RunState.STOPPED
        assert play.life.queued is None
        assert SaveQueued(None) in play.seen
        assert [action.ok for action in play.seen if isinstance(action, Answer) and action.token == 99] == [True]


@given(st.lists(st.tuples(st.floats(0, 200), st.sampled_from([*Fate])), max_size=10))
def test_a_run_does_not_begin_before_its_time_however_the_clock_is_set(looks: list[tuple[float, Fate]]) -> None:
    """The clock may be set ahead and back at any time; a time that has come counts as come."""
    play = Play(new_life(queued=(FIRST,), not_before=NotBefore(at_unix_s=100.0, text="Sat 23:00")))
    play.do("start", leftover=False)
    assert play.life.waits == "until Sat 23:00 and for run 'a'"
    has_come, is_over = False, False
    for at_unix_s, fate in looks:
        has_come, is_over = has_come or at_unix_s >= 100, is_over or fate not in LIVES
        claims = ClaimRoom() in play.do("awaited", {"a": fate}, at_unix_s)
        assert claims == (has_come and is_over)
        assert (play.life.not_before is None) == has_come
    saved = [action for action in play.seen if isinstance(action, SaveQueued)]
    assert not saved or saved[-1] == SaveQueued(play.life.queued, play.life.not_before)


def test_only_a_pause_comes_before_waiting() -> None:
    before = {state for state in RunState if RunState.WAITING in STATE_MOVES[state]}
    assert before == {RunState.PAUSING, RunState.PAUSED}


# --------------------------------------------------------------------------------------------------------------------
# What the ledger is told, for programs


MEMORY = (HoldReason.MEMORY,)


def test_an_order_of_the_ladder_is_on_record_with_what_it_answers_and_what_came_of_it() -> None:
    play = Play(new_life()).training()
    both = (HoldReason.MEMORY, HoldReason.HEAT)
    play.do("stance", Stance(rung=Rung.SHRINK, shrink=True, may_grow=False, duty_fraction=0.7, pressures=both))
    halve, pace = play.orders()
    play.do("report", m.Done(order_id=halve.order_id, detail="512", micro_tokens=512))
    halved = play.record(Event.ORDER)
    assert (halved.order, halved.outcome, halved.by) == (OrderKind.HALVE, Outcome.DONE, By.LADDER)
    assert (halved.tokens, halved.pressures) == ((1024, 512), MEMORY)
    play.seen.clear()
    play.do("report", m.OrderFailed(order_id=pace.order_id, detail="no"))
    paced = play.record(Event.ORDER)
    assert (paced.order, paced.outcome, paced.by) == (OrderKind.PACE, Outcome.FAILED, By.LADDER)
    assert (paced.duty_fraction, paced.pressures, paced.tokens) == (0.7, (HoldReason.HEAT,), None)


def test_an_order_without_an_answer_is_on_record_as_that() -> None:
    play = Play(new_life()).training()
    play.do("request", 4, RequestKind.CHECKPOINT)
    play.do("tick", after_s=11)
    record = play.record(Event.ORDER)
    assert (record.order, record.outcome, record.by) == (OrderKind.CHECKPOINT, Outcome.UNANSWERED, By.USER)


def test_a_checkpoint_that_was_ordered_is_on_record_with_its_folder_and_step() -> None:
    play = Play(new_life()).training()
    play.do("request", 4, RequestKind.CHECKPOINT)
    play.obey(checkpoint=note(7))
    record = play.record(Event.ORDER)
    assert (record.checkpoint, record.checkpoint_step, record.by) == ("/c/step-7", 7, By.USER)


def test_who_paused_is_on_record_and_who_let_the_run_go_on() -> None:
    play = Play(new_life()).training()
    play.do("request", 1, RequestKind.PAUSE_HOLD)
    wanted = play.record(Event.WANTED)
    assert (wanted.wanted, wanted.pause_mode, wanted.by) == (Wanted.PAUSED, PauseMode.HOLD, By.USER)
    play.obey()
    held = play.record(Event.ORDER)
    assert (held.order, held.by, held.pressures) == (OrderKind.HOLD, By.USER, ())
    play.seen.clear()
    play.do("request", 2, RequestKind.RESUME)
    wanted = play.record(Event.WANTED)
    assert (wanted.wanted, wanted.pause_mode, wanted.by) == (Wanted.RUNNING, None, By.USER)
    play.obey()
    resumed = play.record(Event.ORDER)
    assert (resumed.order, resumed.by) == (OrderKind.RESUME, By.USER)


def test_the_ladder_holds_with_its_reasons_and_resumes() -> None:
    play = Play(new_life()).training()
    holds = frozenset({HoldReason.DISK, HoldReason.MEMORY})
    play.do("stance", Stance(rung=Rung.HOLD, holds=holds, reason="full", pressures=(*MEMORY, HoldReason.DISK)))
    play.obey()
    orders = [a for a in play.seen if isinstance(a, Record)]
    assert [(a.order, a.by, a.pressures) for a in orders] == [
        (OrderKind.HOLD, By.LADDER, (*MEMORY, HoldReason.DISK)),
        (OrderKind.CHECKPOINT, By.LADDER, (*MEMORY, HoldReason.DISK)),
    ]
    play.seen.clear()
    play.do("stance", Stance())
    play.obey()
    resumed = play.record(Event.ORDER)
    assert (resumed.order, resumed.by) == (OrderKind.RESUME, By.LADDER)


def test_a_decision_of_the_ladder_carries_what_it_was_made_on_and_nothing_else_does() -> None:
    play = Play(new_life()).training()
    play.do("request", 1, RequestKind.PAUSE_HOLD)
    moment = LadderState(now_s=1.0, limits=MemoryLimits(worker_bytes=1 << 30, reserve_bytes=1 << 29))
    stance = Stance(rung=Rung.FREEZE, freeze=True, pressures=MEMORY, reason="97 %")
    play.seen.clear()
    play.do("stance", stance, decided_on=moment)
    up, frozen = play.record(Event.RUNG), play.record(Event.FREEZE)
    assert (up.move, up.rung, up.by, up.pressures, up.ladder) == (Move.UP, "freeze", By.LADDER, MEMORY, moment)
    assert (frozen.rung, frozen.by, frozen.pressures, frozen.ladder) == ("freeze", By.LADDER, MEMORY, moment)
    play.seen.clear()
    play.do("stance", Stance(rung=Rung.SHRINK, shrink=True, pressures=MEMORY), decided_on=moment)
    down, thawed = play.record(Event.RUNG), play.record(Event.THAW)
    assert (down.move, thawed.by, thawed.ladder) == (Move.DOWN, By.LADDER, None)
    play.seen.clear()
    play.do("stance", Stance(rung=Rung.SHRINK, shrink=True, pressures=MEMORY), decided_on=moment)
    assert play.record(Event.RUNG).move is Move.SHRINK


def test_a_held_command_is_frozen_by_who_holds_it() -> None:
    play = Play(new_life(is_command=True))
    play.do("start", leftover=False)
    play.do("spawned")
    play.do("request", 1, RequestKind.PAUSE_HOLD)
    frozen = play.record(Event.FREEZE)
    assert (frozen.by, frozen.rung, frozen.pressures) == (By.USER, None, ())
    play.do("request", 2, RequestKind.RESUME)
    assert play.record(Event.THAW).by is By.USER
    play.seen.clear()
    hot = frozenset({HoldReason.HEAT})
    play.do("stance", Stance(rung=Rung.HOLD, holds=hot, reason="92 °C", pressures=(HoldReason.HEAT,)))
    frozen = play.record(Event.FREEZE)
    assert (frozen.by, frozen.rung, frozen.pressures) == (By.LADDER, None, (HoldReason.HEAT,))


def test_a_kill_a_death_and_what_follows_are_on_record_with_their_cause() -> None:
    play = Play(new_life()).training()
    play.do("stance", Stance(rung=Rung.KILL, freeze=True, kill=True, reason="98 %", pressures=MEMORY))
    kill = play.record(Event.KILL)
    assert (kill.cause, kill.by, kill.rung, kill.pressures) == (Cause.MEMORY, By.LADDER, "kill", MEMORY)
    play.do("exit", -9, 0, given_back=GivenBack(ram_bytes=5, vram_bytes=7))
    death, smaller, freed = play.record(Event.DEATH), play.record(Event.SMALLER), play.record(Event.GIVEN_BACK)
    assert (death.cause, death.again, death.delay_s) == (Cause.MEMORY, True, 1.0)
    assert (smaller.tokens, smaller.by) == ((1024, 512), By.SUPERVISOR)
    assert (freed.freed_ram_bytes, freed.freed_vram_bytes) == (5, 7)


def test_a_death_that_is_given_up_and_the_end_after_it_are_on_record() -> None:
    play = Play(new_life()).training()
    play.do("report", m.Failed(cause=m.FailureCause.BAD_INPUT, message="Line 7 has 3 fields instead of 2."))
    play.do("exit", 1, 0)
    death, end = play.record(Event.DEATH), play.record(Event.END)
    assert (death.cause, death.again, death.delay_s) == (Cause.BAD_INPUT, False, None)
    assert (end.by, end.cause) == (By.SUPERVISOR, Cause.BAD_INPUT)


@pytest.mark.parametrize(
    ("event", "by"),
    [
        (("request", 3, RequestKind.STOP), By.USER),
        (("terminate", {"forget": True}), By.USER),
        (("terminate", {"forget": False}), By.SYSTEM),
        (("report", m.Finished(model_path="/m", metrics={}, steps=1, samples=1)), By.WORKER),
    ],
)
def test_who_ended_the_run_is_on_record(event: tuple[object, ...], by: By) -> None:
    play = Play(new_life()).training()
    name, *args = event
    kwargs = args.pop() if isinstance(args[-1], dict) else {}
    play.do(str(name), *args, **kwargs)  # type: ignore[arg-type]
    play.do("exit", 0, 0)
    assert play.record(Event.END).by is by


def test_an_early_end_has_a_line_of_its_own_with_what_was_found() -> None:
    """Once, when it has finished; not where it ran to its last step, nor where nothing is said of evaluations."""
    for stopped_early, found in ((True, EVALUATION), (False, EVALUATION), (True, None)):
        play = Play(new_life()).training()
        last = m.Finished("/m", {}, steps=9, samples=9, evaluation=found, stopped_early=stopped_early, model_step=4)
        play.do("report", last)
        play.do("exit", 0, 0)
        lines = [line for line in play.seen if isinstance(line, Record) and line.event is Event.STOPPED_EARLY]
        assert [(line.by, line.checkpoint_step, line.evaluation) for line in lines] == (
            [(By.WORKER, 4, EVALUATION)] if stopped_early and found else []
        )
        assert play.record(Event.END).cause is Cause.FINISHED


def test_a_run_whose_machine_died_waits_for_a_person_and_nobody_is_said_to_have_asked() -> None:
    play = Play(new_life())
    play.do("machine_died", "The machine died under the run.")
    wanted, end = play.record(Event.WANTED), play.record(Event.END)
    assert (wanted.wanted, wanted.by, end.by) == (Wanted.STOPPED, By.SUPERVISOR, By.SUPERVISOR)


def test_a_worker_that_left_is_on_record_with_who_sent_it_away() -> None:
    for stance, by in [(Stance(rung=Rung.HOLD, holds=frozenset(MEMORY), release=True), By.LADDER), (None, By.WORKER)]:
        play = Play(new_life()).training()
        if stance is not None:
            play.do("stance", stance)
        play.do("report", m.Leaving(reason="its lease ran out", checkpoint=note(6)))
        play.do("exit", 0, 0)
        left = play.record(Event.LEFT)
        assert (left.by, left.cause) == (by, Cause.LEFT)


def test_running_out_of_memory_is_on_record_with_both_sizes() -> None:
    play = Play(new_life()).training()
    play.do("report", OUT_OF_MEMORY)
    record = play.record(Event.OUT_OF_MEMORY)
    assert (record.tokens, record.by, record.pressures) == ((1024, 512), By.WORKER, MEMORY)


def test_a_damaged_checkpoint_is_on_record_and_a_person_is_told_also_when_there_were_many() -> None:
    play = Play(new_life()).training()
    damaged = m.Decided(what=m.DecisionKind.CHECKPOINT_DAMAGED, detail="Step 8 is damaged.", checkpoint="/c/step-8.bad", step=8)
    play.do("report", damaged)
    record = play.record(Event.CHECKPOINT_DAMAGED)
    assert (record.checkpoint, record.checkpoint_step, record.by) == ("/c/step-8.bad", 8, By.WORKER)
    play.do("report", m.Decided(what=m.DecisionKind.CHECKPOINT_USED, detail="Step 4 is used.", step=4))
    play.do("report", m.Decided(what=m.DecisionKind.ROWS_LEFT_OUT, detail="2 rows are empty.", rows=2))
    assert play.life.attention == ("Step 8 is damaged.", "Step 4 is used.")
    assert play.record(Event.ROWS_LEFT_OUT).rows == 2
    for _ in range(100):
        play.do("report", damaged)
    assert len(play.life.attention) == MOST_DAMAGE_TOLD


def test_a_person_is_told_that_nothing_is_saved_for_as_long_as_that_is_so() -> None:
    play = Play(new_life()).training()
    before = play.life.checkpoint
    failed = m.Decided(what=m.DecisionKind.CHECKPOINT_FAILED, detail="No checkpoint after step 9: the disk is full.", step=9)
    for _ in range(2):
        play.do("report", failed)
    assert play.life.attention == (failed.detail,)
    play.do("report", m.Done(order_id=99, detail="", checkpoint=before))
    assert play.life.attention == (failed.detail,)
    newer = m.CheckpointNote(path="/c/step-00000012", step=12, at_unix_s=1.0, verified=True, save_s=1.0, size_bytes=1)
    play.do("report", m.Done(order_id=99, detail="", checkpoint=newer))
    assert play.life.attention == ()


def test_a_checkpoint_that_was_found_damaged_is_the_newest_no_more() -> None:
    """`status` must not point at a folder that was set aside; another step's damage changes nothing."""
    play = Play(new_life(checkpoint=note(8))).training()
    play.do("report", m.Decided(what=m.DecisionKind.CHECKPOINT_DAMAGED, detail="Step 9 is damaged.", step=9))
    assert play.life.checkpoint == note(8)
    play.do("report", m.Decided(what=m.DecisionKind.CHECKPOINT_DAMAGED, detail="Step 8 is damaged.", step=8))
    assert play.life.checkpoint is None
    play.do("report", msgspec.structs.replace(beat(ticks=2), checkpoint=note(4)))
    assert play.life.checkpoint == note(4)


# --------------------------------------------------------------------------------------------------------------------
# What is answered is what was seen done


SIGKILLED = -9
NOT_AS_ASKED = "but not as it was asked to"


def the_answer(actions: list[Action]) -> Answer:
    (found,) = [a for a in actions if isinstance(a, Answer)]
    return found


@pytest.mark.parametrize("what", [RequestKind.STOP, RequestKind.PAUSE_RELEASE, RequestKind.PAUSE_HOLD])
def test_a_worker_that_dies_over_an_order_has_not_carried_it_out(what: RequestKind) -> None:
    """Its death is on record with what it lost, and the answer tells of both; a pause does not become a run."""
    play = Play(new_life(run="deep", checkpoint=note(2))).training()
    for ticks in range(2, 9):
        play.do("report", beat(ticks=ticks, step=5), after_s=0.5)
    play.do("request", 3, what)
    answer = the_answer(play.do("exit", SIGKILLED, 0))
    death = play.record(Event.DEATH)
    assert not answer.ok
    assert NOT_AS_ASKED in answer.text
    assert "SIGKILL from outside memsup" in answer.text
    assert "What was computed since the checkpoint of step 2 is lost: 3 steps, 4 s of work." in answer.text
    assert "--run deep" in answer.text
    assert (death.cause, death.exit_status, death.lost_steps, death.lost_s) == (Cause.KILLED, SIGKILLED, 3, 3.5)
    assert death.again is (what is not RequestKind.STOP)
    assert Spawn() not in play.do("tick", after_s=100)
    assert play.life.state is (RunState.STOPPED if what is RequestKind.STOP else RunState.PAUSED)


def test_a_worker_that_stands_still_and_is_killed_over_a_stop_has_not_stopped_as_asked() -> None:
    """As after `kill -STOP`: no answer is no checkpoint."""
    play = Play(new_life()).training()
    play.do("request", 3, RequestKind.STOP)
    assert Kill() in play.do("tick", after_s=11)
    answer = the_answer(play.do("exit", SIGKILLED, 0))
    assert not answer.ok
    assert (
        "It no longer answered and was killed. There is no checkpoint, so all that was computed is lost: 5 steps" in answer.text
    )
    assert play.record(Event.DEATH).cause is Cause.UNRESPONSIVE


def test_what_was_saved_is_saved_whatever_becomes_of_the_process_afterwards() -> None:
    """Told by the worker, or found on the disk."""
    for told in (True, False):
        play = Play(new_life(checkpoint=note(2))).training()
        play.do("request", 3, RequestKind.STOP)
        if told:
            (stop,) = play.orders()
            play.do("report", m.Done(order_id=stop.order_id, detail="leaving at step 5", checkpoint=note(5)))
        play.life.on_checkpoints(note(5))
        answer = the_answer(play.do("exit", SIGKILLED, 0))
        assert answer.ok is told
        if told:
            assert answer.text.startswith("Stopped at step 5 of 100, with the verified checkpoint of step 5.")
        else:
            assert "No whole step is lost." in answer.text


@pytest.mark.parametrize("what", [RequestKind.PAUSE_RELEASE, RequestKind.PAUSE_HOLD])
def test_who_pauses_a_run_whose_worker_has_just_died_is_told_what_that_lost(what: RequestKind) -> None:
    play = Play(new_life(checkpoint=note(2))).training()
    play.do("exit", SIGKILLED, 0)
    answer = the_answer(play.do("request", 3, what))
    assert answer.ok
    assert answer.text.startswith("Paused; no worker is there. It was killed by SIGKILL")
    assert "What was computed since the checkpoint of step 2 is lost: 3 steps" in answer.text


def test_a_run_is_where_its_checkpoint_is_though_the_worker_did_not_live_to_tell() -> None:
    play = Play(new_life(checkpoint=note(2))).training()
    play.do("request", 3, RequestKind.STOP_NOW)
    play.life.on_checkpoints(note(7))
    assert the_answer(play.do("exit", SIGKILLED, 0)).text.startswith(
        "Stopped at step 7 of 100, with the verified checkpoint of step 7."
    )
    assert play.life.progress.step == 7


def test_a_checkpoint_that_is_not_there_any_more_is_not_gone_on_from() -> None:
    for left, again in ((None, ""), (note(1), " at step 1 of 100")):
        play = Play(new_life(checkpoint=note(4))).training()
        play.seen += play.life.on_checkpoints(left)
        assert play.record(Event.CHECKPOINT_GONE).checkpoint_step == 4
        play.do("exit", SIGKILLED, 0)
        death = play.record(Event.DEATH)
        assert (death.lost_steps, death.lost_s) == (5 if left is None else 4, None)
        assert len(play.life.attention) == 1
        play.do("tick", after_s=60.0)
        assert play.life.on_checkpoints(left) == []
        play.do("spawned")
        play.do("report", HELLO)
        play.do("report", beat(Phase.LOADING))
        play.do("request", 3, RequestKind.STOP)
        play.do("report", m.Leaving(reason="stop", checkpoint=left))
        said = the_answer(play.do("exit", 0, 0)).text
        assert said.startswith(f"Stopped{again},"), "what a life before had reached is not where the run is"
        assert ("there is nothing to go on from" in said) is (left is None)


def test_without_a_checkpoint_is_said_with_what_that_costs() -> None:
    play = Play(new_life(checkpoint=note(2))).training()
    play.do("request", 3, RequestKind.STOP_NOW)
    answer = the_answer(play.do("exit", SIGKILLED, 0))
    assert answer.ok
    assert "Stopped, at once. What was computed since the checkpoint of step 2 is lost: 3 steps" in answer.text
    assert not [a for a in play.seen if isinstance(a, Record) and a.event is Event.DEATH], "nobody died: it was asked for"


def test_a_stop_while_it_loads_is_at_the_step_that_its_checkpoint_has() -> None:
    """A worker that has not read it yet says step 0; the run is where the life before left it."""
    before = KnownProgress(step=382, total_steps=900, samples=6112, loss=0.4)
    play = Play(new_life(checkpoint=note(382), before=before))
    play.do("start", leftover=False)
    assert play.life.progress.step == 382
    play.do("spawned")
    play.do("report", HELLO)
    play.do("report", beat(Phase.LOADING, step=0))
    progress = play.life.progress
    assert (progress.step, progress.total_steps, progress.samples, progress.phase) == (382, 900, 6112, Phase.LOADING)
    play.do("request", 3, RequestKind.STOP)
    play.do("report", m.Leaving(reason="stop", checkpoint=note(382)))
    answer = the_answer(play.do("exit", 0, 0))
    assert answer.ok
    assert answer.text.startswith("Stopped at step 382 of 900, with the verified checkpoint of step 382.")


def test_who_pauses_or_stops_after_a_death_is_told_of_it_and_no_memory_is_said_to_be_kept() -> None:
    for what in (RequestKind.PAUSE_HOLD, RequestKind.STOP, RequestKind.CHECKPOINT):
        play = Play(new_life(checkpoint=note(2))).training()
        play.do("exit", SIGKILLED, 0, jitter_fraction=0.0)
        answer = the_answer(play.do("request", 3, what))
        assert answer.ok is (what is not RequestKind.CHECKPOINT)
        assert "memory is kept" not in answer.text
        assert "Nothing was computed" not in answer.text


def test_going_on_is_said_of_a_worker_that_goes_on() -> None:
    """Not of one that is loaded anew, nor of one that does not answer."""
    play = Play(new_life(wanted=Wanted.PAUSED, pause_mode=PauseMode.RELEASE, checkpoint=note(2)))
    play.do("start", leftover=False)
    play.do("request", 3, RequestKind.RESUME)
    assert the_answer(play.do("spawned")).text == "No longer paused: the worker loads, and goes on at step 2."
    play = Play(new_life()).training()
    play.do("request", 1, RequestKind.PAUSE_HOLD)
    play.do("tick", after_s=16)
    assert answers(play.do("request", 2, RequestKind.RESUME)) == [(1, False), (2, False)]


def a_command(**changes: object) -> Play:
    play = Play(new_life(is_command=True, **changes))
    play.do("start", leftover=False)
    play.do("spawned")
    play.seen.clear()
    return play


@pytest.mark.parametrize("exit_status", [0, 1, 143, -15])
@pytest.mark.parametrize("ends", ["stop", "shutdown"])
def test_a_command_that_obeys_is_stopped_whatever_it_ends_with(ends: str, exit_status: int) -> None:
    """Only its own end, unasked, is finished; and nothing is promised that only checkpoints of memsup could keep."""
    play = a_command(run="deep")
    if ends == "stop":
        play.do("request", 1, RequestKind.STOP)
    else:
        play.do("terminate", forget=False)
    assert Terminate() in play.seen
    actions = play.do("exit", exit_status, 0)
    assert play.life.state is RunState.STOPPED
    assert play.life.wanted is (Wanted.STOPPED if ends == "stop" else Wanted.RUNNING)
    assert not [a for a in play.seen if isinstance(a, Record) and a.event is Event.DEATH]
    if ends == "stop":
        answer = the_answer(actions)
        assert answer.ok
        assert answer.text.endswith(
            "memsup start --run deep begins the command anew: it goes on only from what it has saved itself."
        )


@pytest.mark.parametrize("exit_status", [0, 143])
def test_a_command_that_is_told_to_end_by_the_machine_before_we_are_is_stopped_as_well(exit_status: int) -> None:
    """Its end is judged a moment later, and then we have been told."""
    play = a_command()
    assert play.life.owes_last_words
    play.do("terminate", forget=False)
    assert not play.life.owes_last_words
    play.do("exit", exit_status, 0)
    assert play.life.state is RunState.STOPPED


@pytest.mark.parametrize(("exit_status", "cause"), [(SIGKILLED, Cause.KILLED), (-11, Cause.CRASH)])
def test_a_command_that_is_killed_or_crashes_over_a_stop_has_not_ended_as_told(exit_status: int, cause: Cause) -> None:
    play = a_command()
    play.do("request", 1, RequestKind.STOP)
    answer = the_answer(play.do("exit", exit_status, 0))
    assert not answer.ok
    assert NOT_AS_ASKED in answer.text
    assert play.record(Event.DEATH).cause is cause


def test_a_command_that_does_not_end_by_itself_is_killed_and_that_is_said() -> None:
    play = a_command()
    play.do("request", 1, RequestKind.STOP)
    assert Kill() in play.do("tick", after_s=11)
    answer = the_answer(play.do("exit", SIGKILLED, 0))
    assert not answer.ok
    assert "did not end by itself when it was told to, and was killed" in answer.text
    assert play.record(Event.DEATH).again is False


# --------------------------------------------------------------------------------------------------------------------
# Whatever happens


OUT_OF_MEMORY = m.OutOfMemory(
    where="forward", device="cpu", step=3, micro_tokens_before=1024, micro_tokens_after=512, detail="no"
)
EVENTS = st.sampled_from(
    [
        ("spawned",),
        ("report", HELLO),
        ("report", beat(Phase.LOADING)),
        ("report", beat()),
        ("report", beat(Phase.HOLDING, ticks=3)),
        ("report", m.Leaving(reason="x", checkpoint=None)),
        ("report", m.Done(order_id=1, detail="ok")),
        ("report", m.OrderFailed(order_id=2, detail="no")),
        ("report", m.Accepted(order_id=3)),
        ("exit", 0, 0),
        ("exit", -9, 0),
        ("exit", -9, 1),
        ("request", 1, RequestKind.PAUSE_HOLD),
        ("request", 2, RequestKind.PAUSE_RELEASE),
        ("request", 3, RequestKind.RESUME),
        ("request", 4, RequestKind.CHECKPOINT),
        ("request", 5, RequestKind.STOP),
        ("request", 6, RequestKind.STOP_NOW),
        ("stance", Stance()),
        ("stance", Stance(rung=Rung.SHRINK, shrink=True, may_grow=False)),
        ("stance", Stance(rung=Rung.HOLD, holds=frozenset({HoldReason.MEMORY}))),
        ("stance", Stance(rung=Rung.HOLD, holds=frozenset({HoldReason.HEAT}))),
        ("stance", Stance(rung=Rung.HOLD, holds=frozenset({HoldReason.MEMORY}), release=True)),
        ("stance", Stance(rung=Rung.FREEZE, freeze=True)),
        ("stance", Stance(rung=Rung.KILL, freeze=True, kill=True)),
        (
            "report",
            m.OutOfMemory(where="a", device="b", step=1, micro_tokens_before=8, micro_tokens_after=4, detail="c"),
        ),
        ("report", m.Decided(what=m.DecisionKind.CHECKPOINT_DAMAGED, detail="d", step=3)),
        ("stance", Stance(rung=Rung.PACE, duty_fraction=0.5, pressures=(HoldReason.HEAT,))),
        ("hang", "nothing came of it", None),
        ("report", m.Finished(model_path="", metrics={}, steps=5, samples=0)),
        ("let_go",),
        ("terminate",),
        ("tick",),
    ]
)


def assert_is_told_to_programs(record: Record) -> None:
    """Whoever reads the ledger without its sentences knows what was done, by whom and what came of it."""
    match record.event:
        case Event.ORDER:
            assert record.order is not None
            assert record.outcome is not None
            assert record.by is not None
            assert (record.duty_fraction is not None) == (record.order is OrderKind.PACE)
        case Event.DEATH:
            assert record.cause is not None
            assert record.again == (record.delay_s is not None)
        case Event.WANTED:
            assert record.wanted is not None
            assert (record.pause_mode is not None) == (record.wanted is Wanted.PAUSED)
        case Event.RUNG:
            assert record.move is not None
        case Event.SMALLER | Event.OUT_OF_MEMORY:
            assert record.tokens is not None
    if record.event in (Event.FREEZE, Event.THAW, Event.KILL, Event.END, Event.WANTED, Event.RUNG, Event.HANG):
        assert record.by is not None
    if record.rung is not None:
        assert record.by is By.LADDER


@given(st.lists(st.tuples(EVENTS, st.floats(0, 130)), max_size=60), st.booleans())
def test_whatever_happens_there_is_one_worker_and_every_request_is_answered_once(
    script: list[tuple[tuple[object, ...], float]], is_command: bool
) -> None:
    """Any order of events, also impossible ones: never two workers, never a lost or doubled answer, no illegal move of worker
    or state, and no line of the ledger that programs do not understand.
    """
    play = Play(new_life(is_command=is_command))
    play.do("start", leftover=False)
    asked: list[int] = []
    for number, ((name, *args), after_s) in enumerate(script):
        if play.life.terminal is not None:
            break
        if name == "spawned" and play.life.stage is not Stage.SPAWNED:
            continue
        if name == "exit" and play.life.stage is Stage.NONE:
            continue
        if name == "let_go" and play.life.worker.attachment is not Attachment.ATTACHED:
            continue
        if name == "request":
            args[0] = number
            asked.append(number)
        before = play.life.stage
        actions = play.do(str(name), *args, after_s=after_s, **({"forget": is_command} if name == "terminate" else {}))
        if Spawn() in actions:
            assert before is Stage.NONE or name == "exit"
    if play.life.terminal is None:
        play.do("request", 10_000, RequestKind.STOP_NOW)
        asked.append(10_000)
        if play.life.stage is not Stage.NONE:
            play.do("exit", -9, 0)
    assert play.life.terminal is not None
    answered = [a.token for a in play.seen if isinstance(a, Answer)]
    assert sorted(answered) == sorted(asked)
    for action in play.seen:
        if isinstance(action, Record):
            assert_is_told_to_programs(action)
