"""Histories of a run as events in, actions out: what the user wants, what the worker does, what the ladder asks."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.shared import messages as m
from memsup.shared.messages import PauseMode, Phase, RequestKind
from memsup.shared.status import RunState, Wanted
from memsup.supervisor.decide.events import By, Event
from memsup.supervisor.decide.ladder import HoldReason, Rung, Stance
from memsup.supervisor.decide.run.actions import (
    Action,
    Answer,
    Freeze,
    Kill,
    Quit,
    Record,
    SaveWish,
    Send,
    Spawn,
    Terminate,
    Thaw,
)
from memsup.supervisor.decide.run.leaving import AGAIN_AFTER_S
from memsup.supervisor.decide.run.lifecycle import SILENT_FOR_EVER_S, Lifecycle, Stage
from memsup.supervisor.decide.run.restarts import BUDGET

LEGAL = {
    RunState.STARTING: {"running", "pausing", "paused", "cooling", "recovering", "stopping", "stopped", "finished", "failed"},
    RunState.RUNNING: {"pausing", "paused", "cooling", "recovering", "stopping", "stopped", "finished", "failed", "starting"},
    RunState.PAUSING: {"paused", "running", "starting", "cooling", "recovering", "stopping", "stopped", "finished", "failed"},
    RunState.PAUSED: {"pausing", "running", "starting", "cooling", "recovering", "stopping", "stopped", "finished", "failed"},
    RunState.COOLING: {"running", "starting", "pausing", "paused", "recovering", "stopping", "stopped", "finished", "failed"},
    RunState.RECOVERING: {"running", "starting", "pausing", "paused", "cooling", "stopping", "stopped", "finished", "failed"},
    RunState.STOPPING: {"stopped", "finished", "failed"},
    RunState.STOPPED: set(),
    RunState.FINISHED: set(),
    RunState.FAILED: set(),
}


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
        assert after == before or str(after) in LEGAL[before], f"{before} → {after} on {event}"
        self.seen += actions
        return actions

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
    assert Spawn() in play.do("tick", after_s=1.1)
    play.do("spawned")
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
    assert play.life.restarts == 1
    assert Spawn() in play.do("tick", after_s=5)
    play.do("spawned")
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
    assert FULL in (play.life.leaving.sentence(None) or "")
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
    assert play.life.leaving.sentence(None) is None


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
    play.do("tick", after_s=16)
    assert play.life.unresponsive
    assert not play.life.view().takes_orders
    assert Kill() in play.do("tick", after_s=SILENT_FOR_EVER_S)


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
        ("tick",),
    ]
)


@given(st.lists(st.tuples(EVENTS, st.floats(0, 130)), max_size=60), st.booleans())
def test_whatever_happens_there_is_one_worker_and_every_request_is_answered_once(
    script: list[tuple[tuple[object, ...], float]], is_command: bool
) -> None:
    """Any order of events, also impossible ones: never two workers, never a lost or doubled answer, no illegal move."""
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
        if name == "request":
            args[0] = number
            asked.append(number)
        before = play.life.stage
        actions = play.do(str(name), *args, after_s=after_s)
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
