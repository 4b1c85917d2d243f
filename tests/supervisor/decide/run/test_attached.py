"""Histories of a command whose program has called `memsup.guard`: it is ordered like the built-in training, and treated as any
command where it does not come to a boundary.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest

from memsup.about import NotAttached, NotCut, Seam
from memsup.shared import messages as m
from memsup.shared.messages import PauseMode, Phase, RequestKind
from memsup.shared.status import RunState, Wanted
from memsup.supervisor.decide.events import Event
from memsup.supervisor.decide.ladder import HoldReason, Rung, Stance
from memsup.supervisor.decide.run.actions import Action, Answer, Freeze, Kill, Record, Send, Spawn, Terminate, Thaw
from memsup.supervisor.decide.run.attachment import HOLDS, NOT_ATTACHED, NOT_CUT, Guarded, Promise, lacks, what_it_is
from memsup.supervisor.decide.run.lifecycle import Lifecycle
from memsup.supervisor.decide.run.one_life import BOUNDARY_WITHIN_S, HOLD_WITHIN_S, TERM_WITHIN_S, UNWINDS_WITHIN_S
from memsup.supervisor.decide.run.requests import WAIT_S
from memsup.supervisor.decide.run.restarts import BUDGET, Cause

ABOUT = m.About(seam=Seam.CALLS, training="1", saves=True, cuts=False, not_cut=NotCut.NO_BACKWARD, detail="")


def note(step: int) -> m.CheckpointNote:
    return m.CheckpointNote(path=f"/c/step-{step}", step=step, at_unix_s=1.0, verified=True, save_s=0.1)


def beat(
    phase: Phase = Phase.TRAINING, *, ticks: int = 1, step: int = 5, saved: int | None = None, tokens: int | None = None
) -> m.Heartbeat:
    progress = m.Progress(
        phase=phase, ticks=ticks, epoch=0.1, step=step, total_steps=100, samples=None, loss=0.5, samples_per_s=None, eta_s=9.0
    )
    memory = m.WorkerMemory(resident_bytes=1, cuda_allocated_bytes=None, cuda_reserved_bytes=None, data_limit_bytes=None)
    checkpoint = note(saved) if saved is not None else None
    batch = m.BatchShape(effective=8, micro_tokens=tokens) if tokens is not None else None
    return m.Heartbeat(progress=progress, batch=batch, memory=memory, checkpoint=checkpoint, digest=None)


@dataclass
class Play:
    """The life of an attached command, and its clock."""

    life: Lifecycle
    now_s: float = 0.0

    def do(self, event: str, *args: object, after_s: float = 0.0, **kwargs: object) -> list[Action]:
        self.now_s += after_s
        actions: list[Action] = getattr(self.life, f"on_{event}")(self.now_s, *args, **kwargs)
        return actions

    def begun(self, **of_beat: object) -> Play:
        """Another process of it says Hello."""
        self.do("spawned")
        self.do("report", m.Hello(pid=42, run_id="r", program=ABOUT))
        self.do("report", beat(**of_beat))  # type: ignore[arg-type]
        return self

    def beats_until(self, seconds: float, **of_beat: object) -> list[Action]:
        """The link goes on beating, and nothing else happens."""
        actions: list[Action] = []
        for _ in range(int(seconds / 2)):
            self.do("report", beat(**of_beat), after_s=2.0)  # type: ignore[arg-type]
            actions += self.do("tick")
        return actions


@pytest.fixture
def play() -> Play:
    life = Lifecycle(
        wanted=Wanted.RUNNING,
        pause_mode=PauseMode.HOLD,
        run_id="r",
        lease_s=10.0,
        memory_limit_bytes=1 << 30,
        is_command=True,
    )
    found = Play(life)
    found.do("start", leftover=False)
    return found.begun()


def orders(actions: list[Action]) -> list[m.Order]:
    return [a.message for a in actions if isinstance(a, Send) and isinstance(a.message, m.Order)]


def answered(actions: list[Action]) -> Answer:
    (found,) = [a for a in actions if isinstance(a, Answer)]
    return found


def death(actions: list[Action]) -> Record:
    (found,) = [a for a in actions if isinstance(a, Record) and a.event is Event.DEATH]
    return found


def test_a_pause_holds_it_at_a_boundary_and_freezes_nothing(play: Play) -> None:
    asked = play.do("request", 1, RequestKind.PAUSE_HOLD)
    (hold,) = orders(asked)
    assert isinstance(hold, m.Pause)
    assert Freeze() not in asked
    assert answered(play.do("report", m.Done(order_id=hold.order_id, detail="holding"))).text.startswith(
        "Paused at step 5 of 100"
    )
    assert isinstance(orders(play.do("request", 2, RequestKind.RESUME))[0], m.Resume)


def test_one_that_comes_to_no_boundary_is_frozen_instead_and_thawed_for_what_comes_next(play: Play) -> None:
    (hold,) = orders(play.do("request", 1, RequestKind.PAUSE_HOLD))
    play.do("report", m.Accepted(order_id=hold.order_id))
    waited = play.beats_until(HOLD_WITHIN_S + 4)
    assert Freeze() in waited
    assert answered(waited).ok
    assert play.life.state is RunState.PAUSED
    assert not play.do("tick", after_s=1000), "it is frozen, and owes nothing"
    resumed = play.do("request", 2, RequestKind.RESUME)
    assert Thaw() in resumed
    assert answered(resumed).ok
    # It comes to its boundary now, holds as it was told then, and is told to go on.
    play.do("report", m.Done(order_id=hold.order_id, detail="holding"))
    assert isinstance(orders(play.do("report", beat(Phase.HOLDING, ticks=3)))[0], m.Resume)


def test_a_stop_is_an_order_and_says_where_it_goes_on(play: Play) -> None:
    (stop,) = orders(play.do("request", 1, RequestKind.STOP))
    assert isinstance(stop, m.Stop)
    play.do("report", beat(step=6, saved=6))
    play.do("report", m.Done(order_id=stop.order_id, detail="left at step 6", checkpoint=note(6)))
    play.do("report", m.Leaving(reason="x", checkpoint=note(6)))
    play.do("let_go")
    done = answered(play.do("exit", 75, 0))
    assert done.ok
    assert play.life.exit_status == 75
    assert done.text == "Stopped at step 6 of 100, with the verified checkpoint of step 6. Continue with: memsup start"
    assert done.checkpoint_path == "/c/step-6"


@pytest.mark.parametrize("ends_with", [-15, -9])
def test_one_that_comes_to_no_boundary_when_it_is_to_leave_is_treated_as_any_command_and_that_is_said(
    play: Play, ends_with: int
) -> None:
    play.do("report", beat(step=5, saved=3, ticks=2))
    (stop,) = orders(play.do("request", 1, RequestKind.STOP))
    play.do("report", m.Accepted(order_id=stop.order_id))
    assert Terminate() not in play.beats_until(BOUNDARY_WITHIN_S - 4, saved=3, ticks=2)
    waited = play.beats_until(6, saved=3, ticks=2)
    assert Terminate() in waited
    assert Kill() not in waited
    if ends_with == -9:
        assert Kill() in play.beats_until(TERM_WITHIN_S + 2, saved=3, ticks=2)
    assert BOUNDARY_WITHIN_S + TERM_WITHIN_S < WAIT_S, "whoever waits is still there"
    done = answered(play.do("exit", ends_with, 0))
    assert not done.ok
    assert "came to no boundary" in done.text
    assert "What was computed since the checkpoint of step 3 is lost: 2 steps" in done.text
    assert "Continue with: memsup start" in done.text


@pytest.mark.parametrize("attaches", [False, True])
def test_one_that_is_stopped_before_it_is_attached_has_ended_as_it_was_told_to(play: Play, attaches: bool) -> None:
    """Also where it says Hello while SIGTERM is on its way: it has computed nothing that it could have saved."""
    play.do("exit", -9, 0)
    play.do("tick", after_s=120.0)
    play.do("spawned")
    assert Terminate() in play.do("request", 1, RequestKind.STOP)
    if attaches:
        play.do("report", m.Hello(pid=43, run_id="r", program=ABOUT))
    done = answered(play.do("exit", -15, 0))
    assert done.ok, done.text
    assert "no boundary" not in done.text


def test_whoever_says_that_it_leaves_and_stays_is_ended_and_has_left_all_the_same(play: Play) -> None:
    (stop,) = orders(play.do("request", 1, RequestKind.STOP))
    play.do("report", m.Done(order_id=stop.order_id, detail="left", checkpoint=note(5)))
    play.do("report", beat(saved=5))
    play.do("report", m.Leaving(reason="x", checkpoint=note(5)))
    play.do("tick")
    assert Terminate() in [action for _ in range(int(UNWINDS_WITHIN_S) + 2) for action in play.do("tick", after_s=1)]
    assert Kill() in [action for _ in range(int(TERM_WITHIN_S) + 2) for action in play.do("tick", after_s=1)]
    assert answered(play.do("exit", -9, 0)).ok


def test_what_is_left_of_a_command_whose_program_has_left_is_ended_too(play: Play) -> None:
    """Of a shell's script, say, of which the next line would begin."""
    (stop,) = orders(play.do("request", 1, RequestKind.STOP))
    play.do("report", m.Done(order_id=stop.order_id, detail="left", checkpoint=note(5)))
    play.do("report", m.Leaving(reason="x", checkpoint=note(5)))
    play.do("report", beat(saved=5))
    assert Terminate() in play.do("let_go")
    assert answered(play.do("exit", -15, 0)).ok
    assert play.life.exit_status is None, "that of the shell says nothing of the program"


def test_who_asked_for_a_checkpoint_of_a_program_that_is_killed_hears_what_became_of_it(play: Play) -> None:
    play.do("report", beat(step=5, saved=5))
    play.do("report", beat(step=8))
    play.do("request", 1, RequestKind.CHECKPOINT)
    assert not [action for action in play.do("let_go") if isinstance(action, Answer)], "how it has ended is known in a moment"
    said = answered(play.do("exit", -9, 0))
    assert not said.ok
    assert "SIGKILL" in said.text
    assert "since the checkpoint of step 5 is lost: 3 steps" in said.text
    assert said.text.endswith("It is started again. Its log: memsup logs")


def test_who_asked_for_a_checkpoint_of_a_program_whose_command_goes_on_is_answered_as_well(play: Play) -> None:
    play.do("request", 1, RequestKind.CHECKPOINT)
    play.do("let_go")
    assert "still runs" in answered(play.do("tick", after_s=3)).text


def test_a_release_is_an_order_and_the_next_life_follows(play: Play) -> None:
    (release,) = orders(play.do("request", 1, RequestKind.PAUSE_RELEASE))
    assert isinstance(release, m.Pause)
    assert release.mode is PauseMode.RELEASE
    play.do("report", beat(step=5, saved=5))
    play.do("report", m.Done(order_id=release.order_id, detail="left", checkpoint=note(5)))
    play.do("report", m.Leaving(reason="x", checkpoint=note(5)))
    paused = answered(play.do("exit", 75, 0))
    assert paused.ok
    assert "with the verified checkpoint of step 5" in paused.text
    assert Spawn() in play.do("request", 2, RequestKind.RESUME)


def test_short_memory_holds_it_then_asks_it_to_leave_and_kills_it_only_where_it_cannot(play: Play) -> None:
    full = {"rung": Rung.HOLD, "holds": frozenset({HoldReason.MEMORY}), "reason": "96 %"}
    held = orders(play.do("stance", Stance(**full)))  # type: ignore[arg-type]
    assert [type(order) for order in held] == [m.Pause, m.Checkpoint]
    asked = play.do("stance", Stance(**full, release=True), after_s=20)  # type: ignore[arg-type]
    assert Kill() not in asked
    (leave,) = orders(asked)
    assert Kill() in play.do("report", m.OrderFailed(order_id=leave.order_id, detail="The program has nothing to save."))


def test_it_is_paced_and_told_nothing_of_micro_batches(play: Play) -> None:
    stance = Stance(rung=Rung.PACE, duty_fraction=0.5, may_grow=False, shrink=True, vram_limit_bytes=1 << 30)
    assert [type(order) for order in orders(play.do("stance", stance))] == [m.Pace]


@pytest.mark.parametrize(
    ("exit_status", "words", "step", "state", "cause"),
    [
        (0, m.Finished(model_path="/m", metrics={}, steps=100, samples=0), 100, RunState.FINISHED, None),
        (0, m.Finished(model_path="/m", metrics={}, steps=60, samples=0), 60, RunState.FINISHED, None),
        (0, None, 100, RunState.FINISHED, None),
        (0, None, 60, RunState.FAILED, Cause.COMMAND_FAILED),
        (1, m.Finished(model_path="/m", metrics={}, steps=100, samples=0), 100, RunState.RECOVERING, Cause.CRASH),
        (1, m.Failed(cause=m.FailureCause.CRASH, message="no", step=7), 7, RunState.RECOVERING, Cause.CRASH),
        (1, m.Failed(cause=m.FailureCause.BAD_INPUT, message="no", step=7), 7, RunState.FAILED, Cause.BAD_INPUT),
        (1, m.Failed(cause=m.FailureCause.OUT_OF_MEMORY, message="no", step=7), 7, RunState.RECOVERING, Cause.CRASH),
        (3, None, 60, RunState.RECOVERING, Cause.CRASH),
        (75, m.Leaving(reason="SIGTERM", checkpoint=None), 60, RunState.STARTING, None),
        (-9, None, 60, RunState.RECOVERING, Cause.KILLED),
    ],
)
def test_how_it_ends_is_judged_by_what_it_said_and_what_was_left(
    play: Play, exit_status: int, words: m.AnyReport | None, step: int, state: RunState, cause: Cause | None
) -> None:
    play.do("report", beat(step=step, ticks=2))
    if words is not None:
        play.do("report", words)
    play.do("let_go")
    ended = play.do("exit", exit_status, 0)
    assert play.life.state is state
    if cause is not None:
        assert death(ended).cause is cause
    if (exit_status, words, step) == (0, None, 60):
        assert "by itself at step 60 of 100, without a call of run.finish" in (play.life.failure or "")


def test_a_newer_checkpoint_refills_what_is_left_of_the_restarts(play: Play) -> None:
    for number in range(BUDGET + 4):
        play.do("report", beat(step=number, saved=number, ticks=number))
        assert death(play.do("exit", -9, 0)).again
        play.do("tick", after_s=100)
        play.begun()
    for _ in range(BUDGET - 1):
        assert death(play.do("exit", -9, 0)).again
        play.do("tick", after_s=100)
        play.begun()
    assert not death(play.do("exit", -9, 0)).again
    assert play.life.state is RunState.FAILED


def test_a_program_that_was_attached_to_a_supervisor_that_died_is_given_time_to_leave(play: Play) -> None:
    play.life = Lifecycle(
        wanted=Wanted.RUNNING, pause_mode=PauseMode.HOLD, run_id="r", lease_s=10.0, memory_limit_bytes=None, is_command=True
    )
    assert Kill() not in play.do("start", leftover=True, was_attached=True)
    assert Spawn() in play.do("exit", None, 0)


def test_a_command_that_is_not_attached_any_more_says_why_it_cannot(play: Play) -> None:
    play.do("let_go")
    for request in (RequestKind.CHECKPOINT, RequestKind.PAUSE_RELEASE):
        refused = answered(play.do("request", 1, request))
        assert not refused.ok
        assert "not attached to this command any more" in refused.text
    assert Freeze() in play.do("request", 2, RequestKind.PAUSE_HOLD)


def test_what_holds_is_less_from_one_kind_to_the_next_and_each_lack_has_its_words() -> None:
    assert HOLDS[Guarded.BUILT_IN] >= HOLDS[Guarded.ATTACHED] > HOLDS[Guarded.FENCED]
    for guarded in Guarded:
        assert len(set(lacks(guarded, ALL_OF_IT))) == len(set(Promise) - HOLDS[guarded])


ALL_OF_IT = m.About(seam=Seam.CALLS, training="1", saves=True, cuts=True, not_cut=None, detail="")


def test_what_a_program_says_of_itself_is_told_and_decides_what_it_is_ordered(play: Play) -> None:
    assert play.life.worker.about == ABOUT
    assert not play.life.worker.tuning.cuts
    play.do("report", m.Described(program=ALL_OF_IT))
    assert play.life.worker.tuning.cuts
    assert any(isinstance(order, m.LimitMicroBatch) for order in orders(play.do("stance", Stance(shrink=True, reason="x"))))
    for why in NotCut:
        about = msgspec.structs.replace(ABOUT, not_cut=why, detail="layer 3")
        assert NOT_CUT[why] in " ".join(lacks(Guarded.ATTACHED, about))
        assert "(layer 3)" in " ".join(lacks(Guarded.ATTACHED, about))
    nothing = msgspec.structs.replace(ABOUT, saves=False)
    assert "nothing to save" in " ".join(lacks(Guarded.ATTACHED, nothing))
    for seam in Seam:
        assert what_it_is(msgspec.structs.replace(ABOUT, seam=seam), None).startswith("attached by ")
    assert what_it_is(msgspec.structs.replace(ABOUT, training="lr-3"), None) == "attached by memsup.guard, training lr-3"


def test_one_that_cuts_begins_with_smaller_parts_after_a_death_for_memory(play: Play) -> None:
    play.do("report", m.Described(program=ALL_OF_IT))
    play.do("report", beat(tokens=4096, saved=5))
    assert death(play.do("exit", -9, 1)).cause is Cause.MEMORY
    play.do("tick", after_s=100)
    play.do("spawned")
    welcomes = [a.message for a in play.do("report", m.Hello(pid=43, run_id="r", program=ABOUT)) if isinstance(a, Send)]
    assert [w.micro_tokens_limit for w in welcomes if isinstance(w, m.Welcome)] == [2048]


def test_one_that_dies_in_its_first_batch_begins_with_smaller_parts_each_time(play: Play) -> None:
    """It has said of no batch yet how it is computed, only what it would be cut to."""
    limits = []
    for tokens in (26_400, 13_200 // 2):
        ran_out = m.OutOfMemory(
            where="forward", device="cpu", step=0, micro_tokens_before=2 * tokens, micro_tokens_after=tokens, detail=""
        )
        play.do("report", ran_out)
        play.do("report", beat())
        assert death(play.do("exit", -9, 1)).cause is Cause.MEMORY
        play.do("tick", after_s=100)
        play.do("spawned")
        play.do("report", m.Hello(pid=43, run_id="r", program=ABOUT))
        limits.append(play.life.micro_tokens_limit)
    assert limits == [13_200, 3_300]
    play.do("exit", -9, 1)
    assert play.life.micro_tokens_limit == 1_650, "nor did it come as far as that"


@pytest.mark.parametrize("why", NotAttached)
def test_a_process_that_is_not_attached_has_said_why(why: NotAttached) -> None:
    life = Lifecycle(
        wanted=Wanted.RUNNING, pause_mode=PauseMode.HOLD, run_id="r", lease_s=10.0, memory_limit_bytes=None, is_command=True
    )
    play = Play(life)
    play.do("start", leftover=False)
    play.do("spawned")
    assert "nothing in it has called memsup.guard" in answered(play.do("request", 1, RequestKind.CHECKPOINT)).text
    play.do("report", m.NotAttachedReport(pid=1, run_id="r", why=why, detail="x"))
    assert (
        f"not attached to this command, since {NOT_ATTACHED[why]}"
        in answered(play.do("request", 2, RequestKind.CHECKPOINT)).text
    )
    play.do("report", m.Hello(pid=42, run_id="r"))
    assert life.worker.about is None, "a program says what it is"


def test_another_training_of_a_program_begins_when_the_one_before_is_through(play: Play) -> None:
    play.do("report", m.Finished(model_path="/a", metrics={}, steps=5, samples=0))
    assert not play.life.worker.obeys
    told = play.do("report", m.Hello(pid=42, run_id="r", program=msgspec.structs.replace(ABOUT, training="2")))
    assert any(isinstance(action, Record) and action.reason.endswith("training 2") for action in told)
    assert play.life.worker.obeys
    assert isinstance(orders(play.do("request", 1, RequestKind.STOP))[0], m.Stop)


@pytest.mark.parametrize("saved", [None, 5])
def test_one_that_was_attached_before_is_not_told_to_be_a_stranger_while_it_starts_again(play: Play, saved: int | None) -> None:
    play.do("report", m.Described(program=ALL_OF_IT))
    play.do("report", beat(saved=saved))
    play.do("exit", -9, 1)
    play.do("tick", after_s=100)
    play.do("spawned")
    assert play.life.came_before
    answer = answered(play.do("request", 1, RequestKind.CHECKPOINT))
    assert not answer.ok
    assert "has not come to where it trains yet; try again" in answer.text
    assert "fenced only until then, since it was started again" in what_it_is(None, None, came_before=True)
    play.do("report", m.Hello(pid=43, run_id="r", program=ALL_OF_IT))
    assert not play.life.came_before


def test_one_that_starts_again_gives_its_memory_back_for_it_has_computed_nothing(play: Play) -> None:
    play.do("report", beat(saved=5))
    play.do("exit", -9, 1)
    play.do("tick", after_s=100)
    play.do("spawned")
    assert Terminate() in play.do("request", 1, RequestKind.PAUSE_RELEASE)
    answer = answered(play.do("exit", -15, 0, after_s=1))
    assert answer.ok
    assert "with the verified checkpoint of step 5" in answer.text
    play.do("request", 2, RequestKind.RESUME)
    assert play.life.may_begin(play.now_s), "and it comes back"


def test_one_that_was_attached_before_and_says_that_it_is_not_now_is_told_why(play: Play) -> None:
    play.do("report", beat(saved=5))
    play.do("exit", -9, 1)
    play.do("tick", after_s=100)
    play.do("spawned")
    said = m.NotAttachedReport(pid=1, run_id="r", why=NotAttached.OTHER_PROGRAM, detail="")
    play.do("report", said)
    assert NOT_ATTACHED[NotAttached.OTHER_PROGRAM] in answered(play.do("request", 1, RequestKind.CHECKPOINT)).text
    assert NOT_ATTACHED[NotAttached.OTHER_PROGRAM] in what_it_is(None, said, came_before=True)
