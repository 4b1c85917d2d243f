"""The life of a run: events in, actions out. Pure; `main.py` feeds the events and carries out the actions.

Covers the events, requests, one life of the worker after the other, and how what is wanted is made real. Does not judge
readings (`ladder.py`), say what follows from where the run stands (`standing.py`), keep what belongs to one worker
(`one_life.py`), classify deaths (`restarts.py`), answer people who wait (`requests.py`) or word the ledger (`records.py`).

Theory of operation. Three things are kept apart: what the user *wants* (running, paused, stopped), what the ladder's *stance*
asks (holds, shrink, freeze, kill), and what the worker *is* (`OneLife`). After every event `_reconcile` compares the wanted
with the real and issues what is missing, so a lost answer or a restarted supervisor needs no special case, and a GPU that has
cooled down never ends a pause that a person asked for. `state` is derived from the three, never set by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from memsup.shared import messages as m
from memsup.shared.commands import command
from memsup.shared.messages import PauseMode, Phase, RequestKind
from memsup.shared.status import STATE_MOVES, RunState, Wanted
from memsup.supervisor.decide.events import By, Event
from memsup.supervisor.decide.ladder import HoldReason, LadderState, Stance
from memsup.supervisor.decide.run import records
from memsup.supervisor.decide.run.actions import (
    BY_USER,
    AbandonMove,
    Action,
    Answer,
    ClaimRoom,
    CoolDown,
    GiveUpState,
    Kill,
    MoveCard,
    Quit,
    Record,
    SaveBudget,
    SaveOffCard,
    SaveQueued,
    SaveWaiver,
    SaveWish,
    Send,
    Spawn,
    Thaw,
    WarmUp,
    Why,
)
from memsup.supervisor.decide.run.attachment import HAS_ENDED, why_not_attached
from memsup.supervisor.decide.run.card import TOO_LATE, Card, CardView, Moved, Place
from memsup.supervisor.decide.run.freed import NOTHING_KNOWN, GivenBack
from memsup.supervisor.decide.run.hang import STOOD_STILL_S
from memsup.supervisor.decide.run.hours import Clock, kept_waiver, rest_of, waived
from memsup.supervisor.decide.run.in_memory import AGAIN_S as KEPT_AGAIN_S
from memsup.supervisor.decide.run.in_memory import Held
from memsup.supervisor.decide.run.in_memory import why_no_room as why_not_kept
from memsup.supervisor.decide.run.leaving import Ending, Leaving
from memsup.supervisor.decide.run.one_life import MOVES, Attachment, OneLife, Stage
from memsup.supervisor.decide.run.requests import Goal
from memsup.supervisor.decide.run.restarts import Budget, Cause, Death, Verdict, judge, last_words_of
from memsup.supervisor.decide.run.standing import Standing
from memsup.supervisor.decide.run.tuning import Tuning
from memsup.supervisor.decide.run.waiting import ENDED, LEFT_BEHIND, Fate, why_never
from memsup.supervisor.decide.run.warm import AFTER_PRESSURE_S, Warmth, why_no_room

MOST_UNHEARD_S = 2.0
"""A worker says twice a second that it computes; what it does in a longer silence is not known, and not counted as work."""
NOT_ATTACHED = "memsup is not attached to this command"
LET_GO = f"memsup is not attached to this command any more, since {HAS_ENDED}"
_DAMAGE = {
    m.DecisionKind.CHECKPOINT_DAMAGED,
    m.DecisionKind.CHECKPOINT_USED,
    m.DecisionKind.MEMORY_DAMAGED,
    m.DecisionKind.BEST_LOST,
}
_OF_THE_MOMENT = ("phase", "ticks", "samples_per_s")
"""What of its progress a worker that loads says itself."""


@dataclass(kw_only=True)
class Lifecycle(Standing):
    """The life of one run under one supervisor: where it stands, and the events that change that."""

    _out: list[Action] = field(default_factory=list)
    _ticked_s: float | None = None
    """The time of the last tick. It is None before the first."""
    _before_release: tuple[Wanted, PauseMode] | None = None
    """What was wanted before a person wanted a program's card back. It is None where nobody did."""
    _last_state: RunState = field(init=False)

    def __post_init__(self, budget: Budget | None) -> None:
        super().__post_init__(budget)
        self._last_state = self.state

    # -- events -------------------------------------------------------------------------------------------------------

    def on_start(
        self,
        now_s: float,
        *,
        leftover: bool,
        was_attached: bool = False,
        stands: bool = False,
        off_card_pids: tuple[int, ...] = (),
    ) -> list[Action]:
        """The supervisor begins its work. `leftover`: a worker of an earlier supervisor still lives. `was_attached`: it is a
        command that was attached to that one, of whose end it knows. `stands`: it stands still by force, so that nothing has
        happened in it meanwhile. `off_card_pids`: what these processes had on the GPU may be in RAM.
        """
        if self.waits is not None:
            self._out.append(records.waits(self.waits))
        elif self.rest is not None:
            self._out.append(records.hours(self.rest, By.HOURS))
        if leftover:
            self._begin(Stage.LEFTOVER, now_s)
        if leftover and self.is_command and stands and not was_attached:
            self.worker.take_over(now_s, Card.found(off_card_pids))
            text = "a command that a supervisor which died had stand still is still here, and is guarded again"
            self._out.append(Record(event=Event.FOUND, reason=text))
        elif leftover and self.is_command and not was_attached:  # it knows no lifeline, and nobody guarded it since
            why = Why("a command that a supervisor which died had started is still here")
            self._out += self.worker.kill(now_s, Cause.LEFT, why)
        elif leftover:
            text = "a worker of a supervisor that died is still here; it is given time to checkpoint and leave"
            self._out += [Record(event=Event.FOUND, reason=text), *([Thaw()] if stands else [])]
        return self._follow_up(now_s)

    def on_awaited(self, now_s: float, fates: Mapping[str, Fate], at_unix_s: float) -> list[Action]:
        """The runs that are waited for were looked at: what has become of each; and the clock, which anybody may set. To be
        called every second or two while the run is queued.
        """
        if self.queued is None or self.terminal is not None or self.stage is not Stage.NONE:
            return []
        seen = [(one, fates.get(one.run, Fate.UP)) for one in self.queued]
        ended = [(one, fate) for one, fate in seen if fate in ENDED]
        self.left_behind = tuple((one, fate) for one, fate in seen if fate in LEFT_BEHIND)
        is_time = self.not_before is not None and at_unix_s >= self.not_before.at_unix_s
        if (never := why_never(self.run, ended)) is not None:
            self._leave_queue()
            self._end_run(RunState.FAILED, never, By.SUPERVISOR)
        elif ended or is_time:
            self.queued = tuple(one for one, fate in seen if fate not in ENDED)
            self.not_before = None if is_time else self.not_before
            self._out += [SaveQueued(self.queued, self.not_before), records.waits(self.waits or "", ended)]
        self._take_turn()
        return self._follow_up(now_s)

    def on_hours(self, now_s: float, clock: Clock | None, *, given: bool = False) -> list[Action]:
        """What the clock says of the run's hours, which anybody may set; to be called every second or two where it has any.
        `given`: a person has just given them, and whatever was said of other hours is over. Hours with an end alone end for the
        first time after that.
        """
        if self.terminal is not None:
            return []
        self.clock = clock
        if given:
            self._waive(clock.at_unix_s if clock is not None and clock.begins is None else None)
        elif clock is not None:
            self._waive(kept_waiver(clock, self.waived_unix_s))
        if self._rest(By.HOURS):  # else `on_awaited` looks for room, as often
            self._take_turn()
        return self._follow_up(now_s)

    def on_room(self, now_s: float, why_not: str | None) -> list[Action]:
        """There is room for the run, whose turn it is, and it was claimed; or `why_not`, a sentence."""
        if why_not is None:
            self._leave_queue()
            self._out.append(records.begins())
        elif why_not != self.no_room:
            self.no_room = why_not
            self._out.append(Record(event=Event.WAITS, reason=why_not, by=By.SUPERVISOR))
        return self._follow_up(now_s)

    def on_spawned(self, now_s: float) -> list[Action]:
        """The worker's process runs."""
        self.worker.has_begun = True
        self.recovery.began()
        if self.is_command:
            self.worker.enter(Stage.READY, now_s)
            self._recovered("the command runs again")  # nobody may tell when it has found back to its work
        return self._follow_up(now_s)

    def on_spawn_failed(self, now_s: float, why: str, *, may_pass: bool = False) -> list[Action]:
        """The worker's process could not be started. `may_pass`: there may be what it needs later."""
        self._begin(Stage.NONE, now_s)
        sentence = f"The worker could not be started: {why}."
        delay_s = self.recovery.not_started(now_s, sentence) if may_pass else None
        if delay_s is None:
            self._end_run(RunState.FAILED, sentence, By.SUPERVISOR)
        else:
            self._out.append(records.not_started(sentence, delay_s))
        return self._follow_up(now_s)

    def on_report(self, now_s: float, report: m.AnyReport) -> list[Action]:
        """The worker said something."""
        worker = self.worker
        if not worker.is_alive:
            return []
        if isinstance(report, m.NotAttachedReport):  # of another process than the one that is heard
            worker.not_attached = report
            return self._follow_up(now_s)
        silent_s, worker.heard_at_s, worker.unresponsive = now_s - worker.heard_at_s, now_s, False
        if worker.computes and self.work_s is not None:
            self.work_s += min(silent_s, MOST_UNHEARD_S)
        if isinstance(report, m.Heartbeat | m.Done | m.Leaving):
            self._saved(report.checkpoint)
        match report:
            case m.Hello(program=about) if self.is_command is (about is not None):
                self._welcome(now_s, about)
            case m.Described(program=about):
                worker.describe(about)
            case m.Heartbeat():
                self._heard(now_s, report)
            case m.Accepted(order_id=order_id):
                worker.orders.accepted(order_id, now_s)
            case m.Done() | m.OrderFailed():
                self._out += worker.answered(now_s, report)
            case m.OutOfMemory():
                worker.micro_tokens = report.micro_tokens_after if report.where != "evaluate" else worker.micro_tokens
                self._out.append(records.out_of_memory(report))
            case m.StateGivenUp(step=step):
                why = f"memory ran out after step {step:,}, which is done again as it was"
                self._give_up_state(now_s + KEPT_AGAIN_S, why, By.WORKER)
            case m.Decided(what=what):
                self._out.append(records.decided(report))
                if what in _DAMAGE:
                    self.damage.append(report.detail)
                if what is m.DecisionKind.CHECKPOINT_FAILED:
                    self.not_saved = report.detail
                gone = what is m.DecisionKind.CHECKPOINT_DAMAGED
                if gone and self.checkpoint is not None and self.checkpoint.step == report.step:
                    self.checkpoint = None  # the next heartbeat tells which one is the newest now, if there is any
            case m.Finished() | m.Failed() | m.Leaving():
                worker.last_words = report
        return self._follow_up(now_s)

    def on_let_go(self, now_s: float) -> list[Action]:
        """The process that spoke for a command has ended its connection, or itself."""
        self._out += self.worker.let_go(now_s)
        return self._follow_up(now_s)

    def on_checkpoints(self, newest: m.CheckpointNote | None) -> list[Action]:
        """`newest` is the checkpoint that lies on the disk, now that no worker computes. It is None where there is none."""
        if self.saves_elsewhere:
            return []
        known = self.checkpoint
        if known is not None and (newest is None or newest.step < known.step):
            gone = records.checkpoint_gone(known, newest)
            self.damage.append(gone.reason)
            self.checkpoint = newest
            if self.stage is not Stage.SPAWNED:  # what was computed since an older one was not counted
                self.work_s = None
            return [gone]
        if known is None or (newest is not None and newest.path != known.path):
            self._saved(newest)
        return []

    def on_exit(
        self,
        now_s: float,
        exit_status: int | None,
        fence_oom_kills: int,
        gpu_lost: str | None = None,
        *,
        rest_status: int = 0,
        gpu_crowded: str | None = None,
        given_back: GivenBack | None = NOTHING_KNOWN,
        jitter_fraction: float = 0.0,
    ) -> list[Action]:
        """The worker and everything it started are gone. The fields of `Death` say what else is known of that. `given_back` is
        what it gave back; it is None where `on_given_back` will follow. `jitter_fraction` is by chance, for the delay of a
        restart.
        """
        worker = self.worker
        self._begin(Stage.NONE, now_s)
        if not worker.trains and worker.killed_by_us is None and isinstance(worker.last_words, m.Failed):
            self._give_up_state(now_s, "the worker that was to go on from it failed before its first step")
        if worker.stage is Stage.LEFTOVER:
            self._out.append(Record(event=Event.LEFT, reason="the earlier worker is gone"))
            if worker.killed_by_us is Cause.UNRESPONSIVE:
                self._died("The worker of a supervisor that died did not leave, and was killed.")
            if worker.leaving.for_good:
                self._stopped(worker.leaving)
            return self._follow_up(now_s)
        self.exit_status = worker.own_exit_status(exit_status)
        death = Death(
            run=self.run,
            exit_status=exit_status,
            rest_status=rest_status,
            last_words=worker.last_words,
            killed_by_us=worker.killed_by_us,
            fence_oom_kills=fence_oom_kills,
            gpu_lost=None if self.on_cpu else gpu_lost,
            continues_on_cpu=self.continue_on_cpu and not self.is_command,
            gpu_crowded=gpu_crowded,
            is_command=self.is_command,
            was_attached=self.is_command and worker.reports and not worker.terminated_unattached,
            was_told=worker.terminated_at_s is not None,
            steps_left=self.steps_left,
        )
        self._judge(now_s, death, worker.leaving, jitter_fraction)
        self._out += worker.ended(self._what_became())
        return self.on_given_back(now_s, given_back)

    def on_given_back(self, now_s: float, given_back: GivenBack | None) -> list[Action]:
        """What the last worker gave back is known, or is still to be asked (None)."""
        self.given_back = given_back
        self._out += records.given_back(given_back) if given_back is not None else []
        return self._follow_up(now_s)

    def on_card_seen(self, seen: CardView) -> None:
        """What the worker has on the GPU, and what room there is for that in RAM."""
        self.card_seen = seen

    def on_card_moved(self, now_s: float, moved: Moved, given_back: GivenBack | None = NOTHING_KNOWN) -> list[Action]:
        """This came of having the driver move what a program has on the GPU. `given_back` is what came back of the card where
        it is in RAM now; it is None where `on_given_back` will follow.
        """
        if self.worker.card.moves:
            self._card_moved(now_s, moved)
        if self.worker.card.place is Place.IN_RAM:
            return self.on_given_back(now_s, given_back)
        return self._follow_up(now_s)

    def on_stance(self, now_s: float, stance: Stance, *, decided_on: LadderState | None = None) -> list[Action]:
        """The ladder has looked. `decided_on` is what it judged besides the readings, and goes into the records of its
        decisions.
        """
        self._out += records.rung(stance, self.stance)
        self.worker.tuning.ask(stance)
        self.stance = stance
        return [records.with_ladder(action, decided_on) for action in self._follow_up(now_s)]

    def on_warmth(
        self,
        now_s: float,
        warmth: Warmth,
        *,
        use_with: float | None,
        is_at_rest: bool,
        why_refused: str | None = None,
        why_dismissed: str | None = None,
    ) -> list[Action]:
        """What stands by for the next worker is `warmth`; to be called every second or two. `use_with` is the part of memory
        that would be used with it. It is None where that is not known. `is_at_rest`: memory is not short in any way.
        `why_refused` is what a process said that does not stand by, and `why_dismissed` what one was ended for. Each is None
        where there is no such thing.
        """
        standby, before = self.standby, self.standby.warmth
        if standby.saw(now_s, warmth, refuses=why_refused is not None):
            why = why_refused or why_dismissed or "it has ended"
            self._out.append(records.no_standby(f"{why}; {standby.again_words(now_s)}"))
        elif before is Warmth.LOADING and warmth is Warmth.READY:
            self._out.append(records.stands_by())
        if not is_at_rest and warmth is not Warmth.NONE:
            self._make_room(now_s)
        eta_s = self.heartbeat.progress.eta_s if self.heartbeat is not None else None
        trains = self.worker.is_ready and self.worker.trains and is_at_rest
        up_s = now_s - self.worker.since_s
        if trains and self.may_stand_by and standby.is_due(now_s, up_s=up_s, eta_s=eta_s):
            before_told, standby.told = standby.told, why_no_room(use_with)
            if standby.told is None:
                standby.warmth = Warmth.LOADING
                self._out.append(WarmUp())
            elif before_told is None:
                self._out.append(records.no_standby(standby.told))
        return self._follow_up(now_s)

    def on_memory_short(self, now_s: float) -> list[Action]:
        """So much memory is used that what is prepared for the next worker has to go, before anything is asked of this one."""
        self._make_room(now_s)
        self._give_up_state(now_s + KEPT_AGAIN_S, "memory gets short", By.LADDER)
        return self._follow_up(now_s)

    def on_room_in_memory(self, now_s: float, *, use_with: float | None, is_at_rest: bool) -> list[Action]:
        """Whether there is room to keep the newest state in memory; to be called every second or two. `use_with` is the part of
        memory that would be used with what that still needs. It is None where that is not known. `is_at_rest`: memory is not
        short in any way.
        """
        kept, needed_bytes = self.in_memory, self.state_needs_bytes
        up_s = now_s - self.worker.since_s
        trains = self.worker.is_ready and self.worker.trains and is_at_rest
        if needed_bytes is None or not self.may_be_in_memory or not trains:
            return self._follow_up(now_s)
        why_not = why_not_kept(use_with, needed_bytes, is_kept=kept.every_s is not None)
        if kept.every_s is not None and why_not is not None:
            self._give_up_state(now_s + KEPT_AGAIN_S, why_not)
        elif kept.is_due(now_s, up_s=up_s):
            if why_not is None:
                kept.begin()
                assert kept.every_s is not None
                self._out.append(records.kept_in_memory(kept.every_s))
            elif kept.told is None:
                kept.told = why_not
                self._out.append(records.not_in_memory(why_not))
        return self._follow_up(now_s)

    def on_kept(self, now_s: float, note: m.Kept) -> list[Action]:
        """The worker has handed its state over in memory."""
        kept = self.in_memory
        if kept.every_s is None:  # it was on its way when it was given up
            self._out.append(GiveUpState())
        else:
            kept.held = Held(step=note.step, size_bytes=note.size_bytes, work_s=self.work_s)
            kept.wrote(note.took_s)
        return self._follow_up(now_s)

    def on_tick(self, now_s: float) -> list[Action]:
        """Time has passed, which deadlines are made of; to be called every second or two. Where it was not for longer, the
        supervisor stood still.
        """
        if self._ticked_s is not None and now_s - self._ticked_s > STOOD_STILL_S:
            self.worker.stood_still(now_s, now_s - self._ticked_s)
        self._ticked_s = now_s
        if self.worker.card.is_late(now_s, stands=self.worker.frozen):
            self._out.append(AbandonMove())
            self._card_moved(now_s, TOO_LATE)
        self._out += self.worker.deadlines(now_s, cannot_wait=HoldReason.MEMORY in self.stance.holds)
        self._out += self.waiters.overdue(now_s, self.run)
        return self._follow_up(now_s)

    def on_outlived(self, now_s: float, processes: int) -> list[Action]:
        """A command has ended well, and so many processes that it has left still run; to be called while that is so."""
        self._out += self.worker.outlived(now_s, processes)
        return self._follow_up(now_s)

    def on_hang(self, now_s: float, why: str, stacks: str | None) -> list[Action]:
        """The worker still answers, but its main thread does not get on (`hang.py`)."""
        self._out.append(records.hang(why, stacks))
        self._out += self.worker.kill(now_s, Cause.HANG, Why(why))
        return self._follow_up(now_s)

    def on_machine_died(self, now_s: float, why: str) -> list[Action]:
        """The machine died under the run, and a person is to say first whether it goes on."""
        self.wanted = Wanted.STOPPED
        self._out += [SaveWish(self.wanted, self.pause_mode), records.wanted(self.wanted, self.pause_mode, Why(why))]
        self._end_run(RunState.STOPPED, None, By.SUPERVISOR)
        return self._follow_up(now_s)

    def on_terminate(self, now_s: float, *, forget: bool) -> list[Action]:
        """The supervisor was told to go: `forget` as by Ctrl-C in the foreground, else as at a shutdown of the machine."""
        if forget:
            self._want(Wanted.STOPPED)
        self.worker.leaving.begin(Ending.STOP if forget else Ending.SHUTDOWN)
        return self._follow_up(now_s)

    def on_request(self, now_s: float, token: int, what: RequestKind) -> list[Action]:
        """A person asked for something; the `Answer` to `token` comes now or later, once."""
        leaving = self.worker.leaving
        match what:
            case RequestKind.STOP | RequestKind.STOP_NOW if self.waits is not None and self.stage is Stage.NONE:
                newest, has = self.checkpoint, "begun" if self.checkpoint is None else "gone on"
                again = "again" if self.rest is not None else "now"
                text = (
                    f"Stopped: it waited {self.waits}, and had not {has}. Start it {again} with: {command('start', self.run)}"
                )
                self._want(Wanted.STOPPED)
                leaving.begin(Ending.STOP)
                self._out.append(Answer(token, True, text, newest.path if newest else None))
            case RequestKind.STOP | RequestKind.STOP_NOW:
                self._want(Wanted.STOPPED)
                leaving.begin(Ending.STOP)
                if what is RequestKind.STOP:
                    self.waiters.add(token, Goal.STOPPED, now_s)
                else:
                    self.waiters.add(token, Goal.STOPPED_NOW, now_s)
                    why = Why("asked to stop now, without a checkpoint", By.USER)
                    self._out += self.worker.kill(now_s, Cause.LEFT, why)
            case _ if leaving.for_good:
                text = f"The run is stopping; start it again with: {command('start', self.run)}"
                self._out.append(Answer(token, False, text))
            case RequestKind.PAUSE_HOLD:
                self._want(Wanted.PAUSED, PauseMode.HOLD)
                self.waiters.add(token, Goal.HELD, now_s)
            case RequestKind.PAUSE_RELEASE if self._is_fenced_only and (kept := self._why_kept) is not None:
                self._out.append(Answer(token, False, kept))
            case RequestKind.PAUSE_RELEASE:
                if not self.wants_release:
                    self._before_release = (self.wanted, self.pause_mode)
                self._want(Wanted.PAUSED, PauseMode.RELEASE)
                leaving.asked_again()
                self.waiters.add(token, Goal.RELEASED, now_s)
            case RequestKind.RESUME:
                self._want(Wanted.RUNNING)
                if self.rest is not None and self.clock is not None:
                    self._waive(waived(self.clock, self.lead_s))
                    self._rest(By.USER)
                self._take_turn()
                self.waiters.add(token, Goal.RUNNING, now_s)
            case RequestKind.CHECKPOINT:
                self._checkpoint(now_s, token)
            case RequestKind.STATUS | RequestKind.TAKE_OVER:
                raise AssertionError("they do not ask the run for anything: `main.py` answers them")
        return self._follow_up(now_s)

    # -- reports and requests -----------------------------------------------------------------------------------------

    def _welcome(self, now_s: float, about: m.About | None) -> None:
        if about is not None:
            self.worker.attach(about)
            self._out.append(records.attached(about))
        if not self.worker.is_ready:  # it says Hello again when it had to connect anew
            self.worker.enter(Stage.READY, now_s)
        welcome = m.Welcome(
            run_id=self.run_id,
            lease_s=self.lease_s,
            memory_limit_bytes=self.memory_limit_bytes,
            micro_tokens_limit=self.micro_tokens_limit,
            on_cpu=self.on_cpu,
            deaths=self.recovery.count,
        )
        self.worker.tuning.told_limit_bytes = self.memory_limit_bytes
        self._out.append(Send(welcome))

    def _heard(self, now_s: float, beat: m.Heartbeat) -> None:
        worker, last, progress = self.worker, self.heartbeat, beat.progress
        if last is None or progress.ticks != last.progress.ticks:
            worker.orders.progressed(now_s)
            self.waiters.progressed(now_s)
        worker.beat(progress.phase, beat.batch, beat.memory.data_limit_bytes)
        if not worker.trains:  # until it has loaded, the run is where the life before left it
            before = msgspec.structs.asdict(last.progress if last is not None else self.before)
            known = {name: value for name, value in before.items() if name not in _OF_THE_MOMENT and value is not None}
            progress = msgspec.structs.replace(progress, **known)
            beat = msgspec.structs.replace(beat, progress=progress, batch=last.batch if last is not None else beat.batch)
        self.heartbeat = beat
        if progress.phase is Phase.TRAINING:
            self._recovered(f"training again at step {progress.step:,}")

    def _saved(self, newest: m.CheckpointNote | None) -> None:
        """A checkpoint is there, of which the worker or the disk tells; None tells nothing."""
        if newest is not None and (self.checkpoint is None or newest.path != self.checkpoint.path):
            self.work_s, self.not_saved = 0.0, None
        self.checkpoint = newest or self.checkpoint
        if self.in_memory.held is not None and self.newer is None:  # a checkpoint is as new
            self.in_memory.held = None
            self._out.append(GiveUpState())

    def _want(self, wanted: Wanted, mode: PauseMode | None = None, why: Why = BY_USER) -> None:
        mode = mode or self.pause_mode
        if (wanted, mode) != (self.wanted, self.pause_mode):
            self.wanted, self.pause_mode = wanted, mode
            self._out += [SaveWish(wanted, mode), records.wanted(wanted, mode, why)]
        if wanted is Wanted.STOPPED and self.queued is not None:
            self._leave_queue()

    def _waive(self, waived_unix_s: float | None) -> None:
        if waived_unix_s != self.waived_unix_s:
            self.waived_unix_s = waived_unix_s
            self._out.append(SaveWaiver(waived_unix_s))

    def _rest(self, by: By) -> bool:
        """Sees whether the run is outside of its hours now. Returns whether that is new."""
        before, self.rest = self.rest, rest_of(self.clock, self.waived_unix_s, self.lead_s)
        is_new = (before is None) is not (self.rest is None)
        if is_new:
            self._out.append(records.hours(self.rest, by))
        return is_new

    def _take_turn(self) -> None:
        if self.is_its_turn and self.stage is Stage.NONE and not self.worker.leaving.for_good:
            self._out.append(ClaimRoom())

    def _leave_queue(self) -> None:
        self.queued, self.not_before, self.left_behind, self.no_room = None, None, (), None
        self._out.append(SaveQueued(None))

    @property
    def _not_attached(self) -> str:
        if self.worker.reports:
            return LET_GO
        return f"{NOT_ATTACHED}, since {why_not_attached(self.worker.not_attached, came_before=self.came_before)}"

    @property
    def _is_fenced_only(self) -> bool:
        """Whether there is a command that takes no orders, and is not about to."""
        return self.worker.is_alive and not self.worker.obeys and not self.comes_again

    @property
    def _why_kept(self) -> str | None:
        """Why the memory of a command that takes no orders is not given back, a sentence. It is None where the driver is to
        move what it has on the GPU, or has.
        """
        card, seen = self.worker.card, self.card_seen
        if not self.worker.is_ready or (card.place is Place.ON_CARD and seen.holders == {}):
            return self._kept(None)
        if card.place is Place.LOST:
            return self._kept(card.trouble)
        if card.place is not Place.ON_CARD:
            return None
        return self._kept(card.cannot if card.never else seen.why_not) if card.never or seen.why_not else None

    def _kept(self, why: str | None) -> str:
        """What a person is told whose command gives no memory back. `why` says why the driver does not move what it has on the
        GPU either. It is None where it has nothing there.
        """
        nor = "" if why is None else f", nor can its GPU memory be moved into RAM: {why}"
        instead = f"{command('pause', self.run)}, or {command('stop', self.run)}"
        return f"{self._not_attached}, so it cannot give its memory back and go on later{nor}; use: {instead}"

    def _checkpoint(self, now_s: float, token: int) -> None:
        if self.comes_again:
            text = "The command was started again, and has not come to where it trains yet; try again in a few seconds."
            self._out.append(Answer(token, False, text))
        elif self.worker.is_alive and not self.worker.obeys:
            text = f"{self._not_attached}: what it saves is its own affair, and memsup cannot order a checkpoint."
            self._out.append(Answer(token, False, text))
        elif self.waits is not None and self.checkpoint is None:
            text = f"It waits {self.waits}: it has not begun, and there is nothing to save."
            self._out.append(Answer(token, False, text))
        elif self.worker.is_ready:
            self._out.append(self.worker.order(now_s, m.Checkpoint, BY_USER, (token,)))
        elif self.stage is Stage.NONE and self.death is not None:
            self._out.append(Answer(token, False, f"There is no worker now. {self.death} {self.unsaved.sentence}"))
        elif self.stage is Stage.NONE and self.checkpoint is not None:
            text = f"Nothing was computed since the checkpoint of step {self.checkpoint.step:,}."
            self._out.append(Answer(token, True, text, self.checkpoint.path))
        else:
            self._out.append(Answer(token, False, "The worker is not ready yet; try again in a few seconds."))

    # -- one life after the other -------------------------------------------------------------------------------------

    def _begin(self, stage: Stage, now_s: float) -> None:
        """Another life begins, or the time between two."""
        last = self.worker
        assert stage in MOVES[last.stage], f"{last.stage} → {stage}"
        if stage is not Stage.NONE:
            self.death, self.work_s = None, self.newer.work_s if self.newer is not None else 0.0
        self.worker = OneLife(
            run=self.run,
            is_command=self.is_command,
            attachment=last.attachment if stage is Stage.NONE else Attachment.NONE,
            stage=stage,
            since_s=now_s,
            heard_at_s=now_s,
            trains=last.trains and stage is Stage.NONE,
            micro_tokens=last.micro_tokens if stage is Stage.NONE else None,
            tuning=Tuning(self.most_micro_tokens),
        )

    def _judge(self, now_s: float, death: Death, leaving: Leaving, jitter_fraction: float) -> None:
        verdict = judge(death, self.recovery.budget, self.newest_step, jitter_fraction)
        if verdict.cause is Cause.FINISHED:
            self.outcome = death.last_words if isinstance(death.last_words, m.Finished) else None
            if self.outcome is not None and self.outcome.stopped_early and self.outcome.evaluation is not None:
                self._out.append(records.stopped_early(self.outcome.evaluation, self.outcome.model_step))
            self._end_run(RunState.FINISHED, None, By.WORKER, verdict.cause)
        elif leaving.for_good:
            if verdict.cause is not Cause.LEFT:
                self._out.append(self._death(verdict, death, Wanted.STOPPED))
            self._stopped(leaving)
        elif verdict.cause is Cause.LEFT:
            self.recovery.left(now_s)
            self._out.append(records.left(verdict, leaving.why(self.stance_why)))
            if leaving.ending is Ending.MAKE_ROOM:
                self._start_smaller(Why("room has to be made for others", By.LADDER))
        else:
            self.recovery.died(now_s, verdict)
            self._out += [self._death(verdict, death, self.wanted), SaveBudget(verdict.budget)]
            if not verdict.again:
                self._end_run(RunState.FAILED, verdict.sentence, By.SUPERVISOR, verdict.cause)
            elif verdict.smaller:
                self._start_smaller(Why(verdict.sentence))

    def _death(self, verdict: Verdict, death: Death, then: Wanted) -> Record:
        """Tells everybody who waits of a death; returns its line of the ledger."""
        self._died(verdict.sentence)
        unsaved = self.unsaved if self.worker.reports else None
        return records.death(verdict, last_words_of(death), death.exit_status, unsaved, then)

    def _what_became(self) -> str:
        """What has become of a worker that has just ended, for whoever has asked it for something."""
        if self.terminal is RunState.FINISHED:
            return "The run is finished."
        then = " It is started again." if self.terminal is None and self.wanted is Wanted.RUNNING else ""
        return f"{self.death or 'It has left as it was told.'} {self.unsaved.sentence}{then}"

    def _died(self, sentence: str) -> None:
        self.death = sentence
        self.waiters.worker_died(sentence)

    def _start_smaller(self, why: Why) -> None:
        batch = self.heartbeat.batch if self.heartbeat else None
        known = self.worker.micro_tokens or self.micro_tokens_limit or (batch.micro_tokens if batch else None)
        if known:  # it may have died before it was through with a batch
            self._out.append(records.smaller(why, self.recovery.shrink(known)))

    def _recovered(self, sentence: str) -> None:
        if self.recovery.recovered():
            self._out.append(Record(event=Event.RECOVERED, reason=sentence))

    def _stopped(self, leaving: Leaving) -> None:
        self._end_run(RunState.STOPPED, None, leaving.why(self.stance_why).by)

    def _end_run(self, state: RunState, failure: str | None, by: By, cause: Cause | None = None) -> None:
        self.terminal, self.failure = state, failure
        self._out += [records.end(state, failure, by, cause), Quit()]

    # -- making real what is wanted -----------------------------------------------------------------------------------

    def _follow_up(self, now_s: float) -> list[Action]:
        """The actions of an event: what it caused, what makes real what is wanted, and the answers that follow."""
        if self.terminal is None:
            self._reconcile(now_s)
        if not self.may_stand_by:
            self._cool_down(now_s)
        if not self.may_be_in_memory:
            self._give_up_state(now_s)
        if self.worker.is_ready and self.worker.keeps_every_s != self.in_memory.every_s:
            self.worker.keeps_every_s = self.in_memory.every_s
            self._out.append(Send(m.KeepState(every_s=self.in_memory.every_s)))
        if self.waiters:
            self._out += self.waiters.answers(self.run_view())
        before, self._last_state = self._last_state, self.state
        assert self._last_state is before or self._last_state in STATE_MOVES[before], f"{before} → {self._last_state}"
        out, self._out = self._out, []
        if any(isinstance(action, Kill) for action in out):  # what is killed is killed with all that stands by
            self.standby.warmth = Warmth.NONE
        return out

    def _make_room(self, now_s: float) -> None:
        if self.standby.warmth is not Warmth.NONE:
            self._cool_down(now_s + self.standby.lost_for_s(now_s, AFTER_PRESSURE_S))
            self._out.append(records.no_standby(f"memory gets short; {self.standby.again_words(now_s)}", By.LADDER))

    def _cool_down(self, not_before_s: float) -> None:
        if self.standby.warmth is not Warmth.NONE:
            self.standby.warmth, self.standby.not_before_s = Warmth.NONE, not_before_s
            self._out.append(CoolDown())

    def _give_up_state(self, not_before_s: float, why: str | None = None, by: By = By.SUPERVISOR) -> None:
        """No state is kept in memory any more, nor tried before. `why` is told, a clause. None: that goes without saying."""
        kept = self.in_memory
        if kept.every_s is None and kept.held is None:
            return
        if kept.held is not None:
            self._out.append(GiveUpState())
        kept.every_s, kept.held, kept.not_before_s = None, None, not_before_s
        if why is not None:
            self._out.append(records.not_in_memory(why, by))

    def _reconcile(self, now_s: float) -> None:
        worker = self.worker
        match worker.stage:
            case Stage.NONE if worker.leaving.for_good:
                self._stopped(worker.leaving)
            case Stage.NONE if self.rest is not None and self.queued is None and self.given_back is not None:
                self.queued = ()  # others may have its room meanwhile
                self._out.append(SaveQueued(self.queued))
            case Stage.NONE if self.may_begin(now_s):
                self._begin(Stage.SPAWNED, now_s)
                self._out.append(Spawn())
            case Stage.SPAWNED | Stage.READY if self.stance.kill or (self.stance.release and not self._can_give_back()):
                # Frozen or held for good it would keep its memory from everybody.
                self._out += self.worker.kill(now_s, Cause.MEMORY, self.stance_why)
            case Stage.SPAWNED | Stage.READY:
                move = self._move_card(now_s)
                self._out += [*worker.freeze(self.why_frozen, emergency=self.stance.freeze), *move]
                if worker.is_ready:
                    self._reconcile_ready(now_s)

    def _reconcile_ready(self, now_s: float) -> None:
        worker = self.worker
        if worker.leaving.ending is None and (why := self.why_released) is not None:
            worker.leaving.begin(why)
        if worker.leaving.cannot is not None and not self.must_leave:
            worker.leaving = Leaving()
        returns = worker.card.moves or (worker.card.is_off and worker.card.trouble is None)
        if not returns:  # what it does about its end may need the card
            self._out += worker.leave(now_s, self.stance_why)
        if not worker.obeys or worker.leaving.told:
            return
        self._out += worker.hold(now_s, self.why_held, save=self.wanted is Wanted.RUNNING)
        if worker.leaving.ending is None:
            self._out += worker.tune(now_s, self.stance)

    def _move_card(self, now_s: float) -> list[Action]:
        """The actions that have the driver move what a command has on the GPU to where it is to be."""
        card, why = self.worker.card, self.why_off_card
        if why is None:
            card.cannot = card.cannot if card.never else None
        if not self.worker.is_ready or self.stance.freeze:
            return []
        may_leave = card.place is Place.STUCK or (card.place is Place.ON_CARD and self.card_seen.holders)
        if why is not None and may_leave and card.cannot is None:
            unasked = None if why.by is By.USER else card.why_not_unasked(self.card_seen)
            why_not = unasked or (self.card_seen.why_not if card.place is Place.ON_CARD else None)
            if why_not is not None:
                card.cannot = why_not
                self._stays_on_card(why, why_not)
                return []
            card.leave(now_s, self.card_seen)
            return [SaveOffCard(card.pids), MoveCard(card.pids, to_ram=True)]
        returns = card.place is Place.STUCK and card.cannot is not None  # whoever needs the card: it does not leave it
        if why is None and card.place in (Place.IN_RAM, Place.STUCK):
            returns = True
        if returns and now_s >= card.again_at_s:
            card.come_back(now_s)
            return [MoveCard(card.pids, to_ram=False)]
        return []

    def _card_moved(self, now_s: float, moved: Moved) -> None:
        card, was, why = self.worker.card, self.worker.card.place, self.why_off_card or Why("it was to be moved")
        if card.moved(now_s, moved, stands=self.worker.frozen or self.stance.freeze):
            self._out.append(MoveCard(card.pids, to_ram=False))
        if was is Place.LEAVING and card.cannot is not None:
            self._stays_on_card(why, card.cannot)
        if card.place is Place.ON_CARD:
            self._out.append(SaveOffCard())
        if card.trouble is not None:
            self._out.append(records.card_stuck(card.trouble, lost=card.place is Place.LOST))
        elif card.place is Place.IN_RAM:
            self._out.append(records.card_left(why, card.held_bytes))
        elif was is Place.RETURNING:
            self.given_back = NOTHING_KNOWN
            self._out.append(records.card_back(card.held_bytes))

    def _stays_on_card(self, why: Why, cannot: str) -> None:
        """What a program has on the GPU is not moved: who asked for that is told so, and all is as it was before."""
        if self.worker.card.place is not Place.LOST:
            self._out.append(records.card_kept(why, cannot))
        if self.wants_release and self._before_release is not None:
            self._want(*self._before_release, Why("its GPU memory stays on the card"))
            self._out += self.waiters.not_released(self._kept(cannot))

    def _can_give_back(self) -> bool:
        """Whether the worker can be asked to leave its memory to others and come back."""
        worker = self.worker
        if not self.is_command or isinstance(worker.last_words, m.Leaving):
            return True
        return worker.obeys and worker.leaving.cannot is None
