"""The life of a run: events in, actions out. Pure; `main.py` feeds the events and carries out the actions.

Covers what the user wants, what the worker is, the orders on their way, deaths and new lives, and the one `state` that people
see. Does not read sensors or judge readings (`ladder.py`), classify deaths (`restarts.py`), time out orders (`orders.py`),
say what people who wait are told (`requests.py`), decide how a worker leaves that cannot save (`leaving.py`) or remember what
it was told of micro-batch and pace (`tuning.py`).

Theory of operation. Three things are kept apart: what the user *wants* (running, paused, stopped), what the ladder's *stance*
asks (holds, shrink, freeze, kill), and what the worker *is* (stage, held, frozen). After every event `_reconcile` compares the
wanted with the real and issues what is missing, so a lost answer or a restarted supervisor needs no special case, and a GPU
that has cooled down never ends a pause that a person asked for. `state` is derived from the three, never set by hand.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import msgspec

from memsup.shared import messages as m
from memsup.shared.messages import PauseMode, Phase, RequestKind
from memsup.shared.status import RunState, Wanted
from memsup.supervisor.decide.events import By, Event
from memsup.supervisor.decide.ladder import HoldReason, Stance, WorkerView
from memsup.supervisor.decide.run.actions import (
    Action,
    Answer,
    Freeze,
    Kill,
    Quit,
    Record,
    SaveBudget,
    SaveWish,
    Send,
    Spawn,
    Terminate,
    Thaw,
)
from memsup.supervisor.decide.run.freed import NOTHING_KNOWN, GivenBack
from memsup.supervisor.decide.run.leaving import Ending, Leaving
from memsup.supervisor.decide.run.orders import OrderBook, OrderMaker, name_of
from memsup.supervisor.decide.run.requests import Goal, RunView, Waiters
from memsup.supervisor.decide.run.restarts import Budget, Cause, Death, Verdict, judge, last_words_of
from memsup.supervisor.decide.run.tuning import Tuning

HELLO_WITHIN_S = 120.0
SILENT_S = 15.0
"""Without a heartbeat for this long the worker counts as unresponsive: orders are useless, freeze and kill are not."""
SILENT_FOR_EVER_S = 120.0
"""Silent for this long, it is killed and started again from its newest checkpoint."""
LEFTOVER_LEAVES_WITHIN_S = 90.0
"""A worker whose supervisor died checkpoints and leaves; after this time it is killed."""


class Stage(enum.Enum):
    """What the worker is."""

    NONE = enum.auto()
    LEFTOVER = enum.auto()
    """Of a supervisor that died; it leaves by itself, and nothing is started before it is gone."""
    SPAWNED = enum.auto()
    READY = enum.auto()
    """It has said Hello. (A foreign command is ready at once.)"""
    ENDING = enum.auto()
    """The kill was sent; its tree is not gone yet."""


TERM_WITHIN_S = 10.0


@dataclass
class Lifecycle:
    wanted: Wanted
    pause_mode: PauseMode
    run_id: str
    lease_s: float
    memory_limit_bytes: int | None
    is_command: bool = False
    continue_on_cpu: bool = False
    """When the GPU is lost; never for a command, which chooses its device itself."""
    on_cpu: bool = False
    """The GPU was lost, and the worker is told to leave it alone."""
    stage: Stage = Stage.NONE
    held: bool = False
    frozen: bool = False
    terminal: RunState | None = None
    heartbeat: m.Heartbeat | None = None
    checkpoint: m.CheckpointNote | None = None
    outcome: m.Finished | None = None
    failure: str | None = None
    exit_status: int | None = None
    restarts: int = 0
    unresponsive: bool = False
    micro_tokens_limit: int | None = None
    most_micro_tokens: int | None = None
    """However calm memory is (`after_power_loss.py`)."""
    given_back: GivenBack | None = NOTHING_KNOWN
    """By the last worker; None: the device is still to be asked, and nothing is started before."""
    stance: Stance = field(default_factory=Stance)
    budget: Budget = field(default_factory=Budget)
    orders: OrderBook = field(default_factory=OrderBook)
    leaving: Leaving = field(default_factory=Leaving)
    _waiters: Waiters = field(default_factory=Waiters)
    _recovering: bool = False
    _trains: bool = False
    """The worker of this life has come as far as training."""
    _respawn_at_s: float = 0.0
    _stage_since_s: float = 0.0
    _heard_at_s: float = 0.0
    _tuning: Tuning = field(default_factory=Tuning)
    _last_words: m.Finished | m.Failed | m.Leaving | None = None
    _killed_by_us: Cause | None = None
    _out: list[Action] = field(default_factory=list)

    # -- events -------------------------------------------------------------------------------------------------------

    def on_start(self, now_s: float, *, leftover: bool) -> list[Action]:
        """`leftover`: a worker of an earlier supervisor still lives."""
        if leftover:
            self._enter(Stage.LEFTOVER, now_s)
        if leftover and self.is_command:  # it knows no lifeline, and nobody guarded it since
            self._kill(now_s, None, "a command that a supervisor which died had started is still here")
        elif leftover:
            self._record(
                Event.FOUND, "a worker of a supervisor that died is still here; it is given time to checkpoint and leave"
            )
        return self._settle(now_s)

    def on_spawned(self, now_s: float) -> list[Action]:
        self._enter(Stage.READY if self.is_command else Stage.SPAWNED, now_s)
        if self.is_command and self._recovering:  # nobody tells when it has found back to its work
            self._recovering = False
            self._record(Event.RECOVERED, "the command runs again")
        return self._settle(now_s)

    def on_spawn_failed(self, now_s: float, why: str) -> list[Action]:
        self._end_run(RunState.FAILED, f"The worker could not be started: {why}.")
        return self._settle(now_s)

    def on_report(self, now_s: float, report: m.AnyReport) -> list[Action]:
        if self.stage not in (Stage.SPAWNED, Stage.READY):
            return []
        self._heard_at_s = now_s
        self.unresponsive = False
        match report:
            case m.Hello():
                self._welcome(now_s)
            case m.Heartbeat():
                self._heard(now_s, report)
            case m.Accepted(order_id=order_id):
                self.orders.accepted(order_id, now_s)
            case m.Done() | m.OrderFailed():
                self._answered(now_s, report)
            case m.OutOfMemory():
                self._record(
                    Event.OUT_OF_MEMORY,
                    f"{report.device} memory ran out in {report.where} at step {report.step:,}: {report.detail}",
                    action=f"micro-batch {report.micro_tokens_before:,} → {report.micro_tokens_after:,} tokens, step redone",
                    result="effective batch unchanged, 0 samples lost",
                )
            case m.Decided():
                self._out.append(
                    Record(
                        event=Event(report.what),
                        reason=report.detail,
                        by=By.WORKER,
                        checkpoint=report.checkpoint,
                        checkpoint_step=report.step,
                        rows=report.rows,
                    )
                )
            case m.Finished() | m.Failed() | m.Leaving():
                self._last_words = report
                if isinstance(report, m.Leaving) and report.checkpoint is not None:
                    self.checkpoint = report.checkpoint
        return self._settle(now_s)

    def on_exit(
        self,
        now_s: float,
        exit_status: int | None,
        fence_oom_kills: int,
        gpu_lost: str | None = None,
        *,
        gpu_crowded: str | None = None,
        given_back: GivenBack | None = NOTHING_KNOWN,
        jitter_fraction: float = 0.0,
    ) -> list[Action]:
        """The worker and everything it started are gone. `given_back` None: `on_given_back` will follow. `jitter_fraction`: by
        chance, for the delay of a restart.
        """
        if self.stage is Stage.LEFTOVER:
            self._enter(Stage.NONE, now_s)
            self._record(Event.LEFT, "the earlier worker is gone")
            return self._settle(now_s)
        self.exit_status = exit_status
        self._enter(Stage.NONE, now_s)
        for pending in self.orders.drop_all():
            for token in pending.requests:
                self._out.append(Answer(token, False, "The worker ended before it could do that; see: memsup logs"))
        death = Death(
            exit_status=exit_status,
            last_words=self._last_words,
            killed_by_us=self._killed_by_us,
            fence_oom_kills=fence_oom_kills,
            gpu_lost=None if self.on_cpu else gpu_lost,
            continues_on_cpu=self.continue_on_cpu and not self.is_command,
            gpu_crowded=gpu_crowded,
            is_command=self.is_command,
        )
        self._judge(now_s, death, jitter_fraction)
        self._take_back(given_back)
        self.held = self.frozen = self.unresponsive = False
        self._last_words = self._killed_by_us = None
        return self._settle(now_s)

    def on_given_back(self, now_s: float, given_back: GivenBack) -> list[Action]:
        self._take_back(given_back)
        return self._settle(now_s)

    def on_stance(self, now_s: float, stance: Stance) -> list[Action]:
        if stance.rung is not self.stance.rung:
            direction = "up" if stance.rung > self.stance.rung else "down"
            self._record(Event.RUNG, stance.reason or "calm again", rung=stance.rung.name.lower(), action=f"ladder {direction}")
        elif stance.shrink or (stance.release and not self.stance.release):
            action = "shrink" if stance.shrink else "release"
            self._record(Event.RUNG, stance.reason, rung=stance.rung.name.lower(), action=action)
        self._tuning.ask(stance)
        self.stance = stance
        return self._settle(now_s)

    def on_tick(self, now_s: float) -> list[Action]:
        """Deadlines; to be called every second or two."""
        self._deadlines(now_s)
        return self._settle(now_s)

    def on_hang(self, now_s: float, why: str, stacks: str | None) -> list[Action]:
        """The worker still answers, but its main thread does not get on (`hang.py`)."""
        self._record(Event.HANG, why, result=stacks)
        self._kill(now_s, Cause.HANG, why)
        return self._settle(now_s)

    def on_machine_died(self, now_s: float, why: str) -> list[Action]:
        """A person is to say first whether it goes on."""
        self.wanted = Wanted.STOPPED
        self._out.append(SaveWish(self.wanted, self.pause_mode))
        self._record(Event.WANTED, why, action="stopped")
        self._end_run(RunState.STOPPED, None)
        return self._settle(now_s)

    def on_terminate(self, now_s: float, *, forget: bool) -> list[Action]:
        """The supervisor was told to go: `forget` as by Ctrl-C in the foreground, else as at a shutdown of the machine."""
        if forget:
            self._want(Wanted.STOPPED)
        self.leaving.begin(Ending.STOP if forget else Ending.SHUTDOWN)
        return self._settle(now_s)

    def on_request(self, now_s: float, token: int, what: RequestKind) -> list[Action]:
        if self.leaving.for_good and what not in (RequestKind.STOP, RequestKind.STOP_NOW):
            self._out.append(Answer(token, False, "The run is stopping; start it again with: memsup start"))
            return self._settle(now_s)
        match what:
            case RequestKind.PAUSE_HOLD:
                self._want(Wanted.PAUSED, PauseMode.HOLD)
                self._waiters.add(token, Goal.HELD, now_s)
            case RequestKind.PAUSE_RELEASE if self.is_command:
                text = "A foreign command cannot give its memory back and go on later; use memsup pause, or memsup stop."
                self._out.append(Answer(token, False, text))
            case RequestKind.PAUSE_RELEASE:
                self._want(Wanted.PAUSED, PauseMode.RELEASE)
                self.leaving.asked_again()
                self._waiters.add(token, Goal.RELEASED, now_s)
            case RequestKind.RESUME:
                self._want(Wanted.RUNNING)
                self._waiters.add(token, Goal.RUNNING, now_s)
            case RequestKind.CHECKPOINT:
                self._checkpoint(now_s, token)
            case RequestKind.STOP:
                self._want(Wanted.STOPPED)
                self.leaving.begin(Ending.STOP)
                self._waiters.add(token, Goal.STOPPED, now_s)
            case RequestKind.STOP_NOW:
                self._want(Wanted.STOPPED)
                self.leaving.begin(Ending.STOP)
                self._waiters.add(token, Goal.STOPPED, now_s)
                self._kill(now_s, None, "asked to stop now, without a checkpoint")
            case RequestKind.STATUS:
                raise AssertionError("status is answered from `status.py`, not from here")
        return self._settle(now_s)

    # -- what others ask ----------------------------------------------------------------------------------------------

    @property
    def state(self) -> RunState:
        if self.terminal is not None:
            return self.terminal
        if self.leaving.for_good:
            return RunState.STOPPING
        if self.wanted is Wanted.PAUSED:
            return RunState.PAUSED if self.stage is Stage.NONE or self._rests else RunState.PAUSING
        if HoldReason.HEAT in self.stance.holds:
            return RunState.COOLING
        if self.stance.holds or self.frozen or self.leaving.ending is Ending.MAKE_ROOM or self._recovering:
            return RunState.RECOVERING
        if self.stage is Stage.READY and (self.is_command or self._trains):
            return RunState.RUNNING
        return RunState.STARTING

    @property
    def owes_last_words(self) -> bool:
        """If the worker has ended by itself, then without a word on why."""
        return self.stage in (Stage.SPAWNED, Stage.READY) and not self.is_command and self._last_words is None

    @property
    def is_settled(self) -> bool:
        """The worker is what it is meant to be, and nothing is on its way."""
        moves = self.orders.in_flight() or self._waiters or self.leaving.ending or self.frozen or self.unresponsive
        return self.stage is Stage.READY and not moves

    def view(self) -> WorkerView:
        """For the ladder."""
        alive = self.stage in (Stage.SPAWNED, Stage.READY)
        batch = self.heartbeat.batch if self.heartbeat else None
        return WorkerView(
            alive=alive,
            takes_orders=self.stage is Stage.READY
            and not self.is_command
            and not self.unresponsive
            and not self.leaving.ending,
            order_in_flight=self.orders.in_flight(m.LimitMicroBatch),
            can_shrink=batch is not None and (batch.micro_rows is None or batch.micro_rows > 1),
            held=self._rests,
            frozen=self.frozen,
        )

    @property
    def _rests(self) -> bool:
        return self.held or (self.is_command and self.frozen)

    @property
    def _should_hold(self) -> bool:
        asked = self.wanted is Wanted.PAUSED and self.pause_mode is PauseMode.HOLD
        return asked or bool(self.stance.holds) or self.leaving.cannot is not None

    # -- reports ------------------------------------------------------------------------------------------------------

    def _welcome(self, now_s: float) -> None:
        self._enter(Stage.READY, now_s)
        self._out.append(
            Send(
                m.Welcome(
                    run_id=self.run_id,
                    lease_s=self.lease_s,
                    memory_limit_bytes=self.memory_limit_bytes,
                    micro_tokens_limit=self.micro_tokens_limit,
                    on_cpu=self.on_cpu,
                    deaths=self.restarts,
                )
            )
        )

    def _heard(self, now_s: float, beat: m.Heartbeat) -> None:
        if self.heartbeat is None or beat.progress.ticks != self.heartbeat.progress.ticks:
            self.orders.progressed(now_s)
            self._waiters.progressed(now_s)
        self._trains = self._trains or beat.progress.phase not in (Phase.STARTING, Phase.LOADING)
        if not self._trains and self.heartbeat is not None:  # until it has loaded, the run is where the life before left it
            last = self.heartbeat.progress
            known = msgspec.structs.replace(last, phase=beat.progress.phase, ticks=beat.progress.ticks, samples_per_s=None)
            beat = msgspec.structs.replace(beat, progress=known, batch=self.heartbeat.batch)
        self.heartbeat = beat
        self.checkpoint = beat.checkpoint or self.checkpoint
        phase = beat.progress.phase
        self.held = phase is Phase.HOLDING or (self.held and phase is Phase.SAVING)  # a held worker saves what it has
        if self._recovering and beat.progress.phase is Phase.TRAINING:
            self._recovering = False
            self._record(Event.RECOVERED, f"training again at step {beat.progress.step:,}")

    def _answered(self, now_s: float, report: m.Done | m.OrderFailed) -> None:
        pending = self.orders.settle(report.order_id)
        if pending is None:
            return
        done = isinstance(report, m.Done)
        note = report.checkpoint if isinstance(report, m.Done) else None
        if note is not None:
            self.checkpoint = note
        known = self.leaving.cannot is not None  # told once, however often it is tried
        match pending.order:
            case m.Pause(mode=PauseMode.HOLD):
                self.held = done
            case m.Resume():
                self.held = self.held and not done
            case m.Stop() | m.Pause() if not done and self.leaving.ending is not None:
                self.leaving.failed(now_s, report.detail)
                if known:
                    return
        kind = name_of(pending.order)
        self._record(Event.ORDER, pending.order.reason, action=kind, result=("done: " if done else "failed: ") + report.detail)
        for token in pending.requests:
            self._out.append(Answer(token, done, report.detail, note.path if note else None))

    # -- requests -----------------------------------------------------------------------------------------------------

    def _want(self, wanted: Wanted, mode: PauseMode | None = None) -> None:
        mode = mode or self.pause_mode
        if (wanted, mode) != (self.wanted, self.pause_mode):
            self.wanted, self.pause_mode = wanted, mode
            self._out.append(SaveWish(wanted, mode))
            self._record(
                Event.WANTED, "the user asked", action=f"{wanted} ({mode})" if wanted is Wanted.PAUSED else str(wanted)
            )

    def _checkpoint(self, now_s: float, token: int) -> None:
        if self.is_command:
            self._out.append(Answer(token, False, "A foreign command writes its own checkpoints; memsup cannot order one."))
        elif self.stage is Stage.READY:
            self._order(now_s, lambda n: m.Checkpoint(order_id=n, reason="the user asked"), [token])
        elif self.stage is Stage.NONE and self.checkpoint is not None:
            text = f"Nothing was computed since the checkpoint of step {self.checkpoint.step:,}."
            self._out.append(Answer(token, True, text, self.checkpoint.path))
        else:
            self._out.append(Answer(token, False, "The worker is not ready yet; try again in a few seconds."))

    # -- deaths -------------------------------------------------------------------------------------------------------

    def _judge(self, now_s: float, death: Death, jitter_fraction: float) -> None:
        leaves, self.leaving = self.leaving, Leaving()
        verdict = judge(death, self.budget, self.checkpoint.step if self.checkpoint else None, jitter_fraction)
        if verdict.cause is Cause.FINISHED:
            self.outcome = self._last_words if isinstance(self._last_words, m.Finished) else None
            self._end_run(RunState.FINISHED, None)
        elif leaves.for_good:
            self._end_run(RunState.STOPPED, None)
        elif verdict.cause is Cause.LEFT or leaves.ending is Ending.RELEASE:
            self._record(Event.LEFT, verdict.sentence)
            self._respawn_at_s = now_s
            if leaves.ending is Ending.MAKE_ROOM:
                self._start_smaller("room has to be made for others")
        else:
            self._died(now_s, verdict, last_words_of(death))

    def _died(self, now_s: float, verdict: Verdict, last_words: str) -> None:
        self.budget = verdict.budget
        action = f"restart in {verdict.delay_s:.1f} s ({verdict.cause})" if verdict.again else "gave up"
        self._record(Event.DEATH, verdict.sentence, action=action, result=last_words)
        self._out.append(SaveBudget(self.budget))
        if not verdict.again:
            self._end_run(RunState.FAILED, verdict.sentence)
            return
        self.restarts += 1
        self._recovering = True
        self.on_cpu = self.on_cpu or verdict.cause is Cause.GPU_LOST
        self._respawn_at_s = now_s + verdict.delay_s
        if verdict.smaller:
            self._start_smaller(verdict.sentence)

    def _start_smaller(self, why: str) -> None:
        batch = self.heartbeat.batch if self.heartbeat else None
        if batch is None:
            return
        self.micro_tokens_limit = max(1, batch.micro_tokens // 2)
        self._record(Event.SMALLER, why, action=f"micro-batch {batch.micro_tokens:,} → {self.micro_tokens_limit:,} tokens")

    def _end_run(self, state: RunState, failure: str | None) -> None:
        self.terminal, self.failure = state, failure
        self._record(Event.END, failure or str(state))
        self._out.append(Quit())

    def _take_back(self, given_back: GivenBack | None) -> None:
        self.given_back = given_back
        if given_back is not None and (given_back.text or given_back.missing):
            self._record(Event.GIVEN_BACK, given_back.text, result=" ".join(given_back.missing) or None)

    # -- making the real what is wanted -------------------------------------------------------------------------------

    def _settle(self, now_s: float) -> list[Action]:
        if self.terminal is None:
            self._reconcile(now_s)
        if self._waiters:
            self._out += self._waiters.answers(self._standing())
        out, self._out = self._out, []
        return out

    def _reconcile(self, now_s: float) -> None:
        match self.stage:
            case Stage.NONE if self.leaving.for_good:
                self._end_run(RunState.STOPPED, None)
            case Stage.NONE if self.given_back is None:
                pass
            case Stage.NONE if self.wanted is Wanted.RUNNING and not self.stance.holds and now_s >= self._respawn_at_s:
                self._out.append(Spawn())
                self._enter(Stage.SPAWNED, now_s)
            case Stage.SPAWNED | Stage.READY if self.stance.kill or (self.is_command and self.stance.release):
                # A command cannot be asked to give its memory back: frozen for good it would keep it from everybody.
                self._kill(now_s, Cause.MEMORY, self.stance.reason)
            case Stage.SPAWNED | Stage.READY:
                self._reconcile_freeze()
                if self.stage is Stage.READY:
                    self._reconcile_ready(now_s)

    def _reconcile_freeze(self) -> None:
        wanted = self.stance.freeze or (self.is_command and self._should_hold and self.leaving.ending is None)
        if wanted and not self.frozen:
            self.frozen = True
            self._out.append(Freeze())
            why = self.stance.reason if self.stance.freeze else self._why_held()
            self._record(Event.FREEZE, why, rung="freeze" if self.stance.freeze else None, action="freeze")
        elif self.frozen and not wanted:
            self.frozen = False
            self._out.append(Thaw())
            self._record(Event.THAW, "it may go on", action="thaw")

    def _reconcile_ready(self, now_s: float) -> None:
        if self.leaving.ending is None and self.wanted is Wanted.PAUSED and self.pause_mode is PauseMode.RELEASE:
            self.leaving.begin(Ending.RELEASE)
        elif self.leaving.ending is None and self.stance.release and not self.is_command:
            self.leaving.begin(Ending.MAKE_ROOM)
        if self.is_command:
            if self.leaving.is_due(now_s):
                self.leaving.told, self._stage_since_s = True, now_s
                self._out.append(Terminate())
            return
        if self.leaving.cannot is not None and not self._must_leave:
            self.leaving = Leaving()
        if self.leaving.ending is not None:
            self._reconcile_leaving(now_s)
            return
        self._reconcile_hold(now_s)
        for make in self._tuning.due(self.stance, self.orders):
            self._order(now_s, make)

    @property
    def _must_leave(self) -> bool:
        match self.leaving.ending:
            case Ending.RELEASE:
                return self.wanted is Wanted.PAUSED and self.pause_mode is PauseMode.RELEASE
            case Ending.MAKE_ROOM:
                return self.stance.release
            case _:
                return True

    def _reconcile_leaving(self, now_s: float) -> None:
        if self.leaving.is_due(now_s):
            self.leaving.told = True
            self._order(now_s, lambda n: self.leaving.order(n, self.stance.reason))
        elif self.leaving.cannot is not None and not self.leaving.told:
            self._reconcile_hold(now_s)

    def _reconcile_hold(self, now_s: float) -> None:
        if self._should_hold and not self.held and not self.orders.in_flight(m.Pause):
            why = self._why_held()
            self._order(now_s, lambda n: m.Pause(order_id=n, reason=why, mode=PauseMode.HOLD))
            if self.wanted is Wanted.RUNNING:  # what the ladder holds may have to be killed next
                self._order(now_s, lambda n: m.Checkpoint(order_id=n, reason=why))
        elif self.held and not self._should_hold and not self.orders.in_flight(m.Resume):
            self._order(now_s, lambda n: m.Resume(order_id=n, reason="nothing holds it any more"))

    def _why_held(self) -> str:
        if self.leaving.cannot is not None:
            return "what it has computed cannot be saved"
        return "the user asked" if self.wanted is Wanted.PAUSED else self.stance.reason

    def _kill(self, now_s: float, cause: Cause | None, why: str) -> None:
        if self.stage not in (Stage.NONE, Stage.ENDING):
            self._killed_by_us = cause
            self._out.append(Kill())
            self._record(Event.KILL, why, rung="kill" if cause is Cause.MEMORY else None, action="kill the whole tree")
            if self.stage is not Stage.LEFTOVER:
                self._enter(Stage.ENDING, now_s)

    def _enter(self, stage: Stage, now_s: float) -> None:
        self.stage, self._stage_since_s, self._heard_at_s = stage, now_s, now_s
        if stage is Stage.SPAWNED:
            self._trains, self._tuning = False, Tuning(self.most_micro_tokens)

    def _order(self, now_s: float, make: OrderMaker, requests: list[int] | None = None) -> None:
        self._out.append(Send(self.orders.issue(make, now_s, requests)))

    # -- deadlines and answers ----------------------------------------------------------------------------------------

    def _deadlines(self, now_s: float) -> None:
        in_stage_s, silent_s = now_s - self._stage_since_s, now_s - self._heard_at_s
        if self.stage is Stage.LEFTOVER and in_stage_s > LEFTOVER_LEAVES_WITHIN_S:
            self._kill(now_s, None, f"the earlier worker did not leave within {LEFTOVER_LEAVES_WITHIN_S:.0f} s")
            self._stage_since_s = now_s
        elif self.stage is Stage.SPAWNED and in_stage_s > HELLO_WITHIN_S:
            self._kill(now_s, Cause.UNRESPONSIVE, f"no sign of life within {HELLO_WITHIN_S:.0f} s of its start")
        elif self.stage is Stage.READY and self.is_command:
            if self.leaving.told and in_stage_s > TERM_WITHIN_S:
                self._kill(now_s, None, f"the command did not end within {TERM_WITHIN_S:.0f} s of SIGTERM")
        elif self.stage is Stage.READY and not self.frozen:
            self.unresponsive = self.unresponsive or silent_s > SILENT_S
            if silent_s > SILENT_FOR_EVER_S:
                self._kill(now_s, Cause.UNRESPONSIVE, f"not a word for {silent_s:.0f} s")
        for pending in self.orders.overdue(now_s):
            self.unresponsive = True
            self._record(Event.ORDER, pending.order.reason, action=name_of(pending.order), result="no answer in time")
            for token in pending.requests:
                self._out.append(Answer(token, False, "The worker has not answered in time; see: memsup status"))
            cannot_wait = self.leaving.told or HoldReason.MEMORY in self.stance.holds
            if isinstance(pending.order, m.Stop | m.Pause) and cannot_wait and self.stage is Stage.READY and not self.frozen:
                self._kill(now_s, Cause.UNRESPONSIVE, "it did not carry out an order that could not wait")
        self._out += self._waiters.overdue(now_s)

    def _standing(self) -> RunView:
        starts = self.stage in (Stage.SPAWNED, Stage.LEFTOVER)
        return RunView(
            terminal=self.terminal,
            failure=self.failure,
            wanted=self.wanted,
            pause_mode=self.pause_mode,
            is_gone=self.stage is Stage.NONE,
            rests=self._rests,
            runs=starts or (self.stage is Stage.READY and not self._rests),
            held_because=self.stance.reason if self.stance.holds else None,
            cannot_leave=self.leaving.sentence(self.checkpoint),
            given_back=self.given_back,
            where=self._where(),
        )

    def _where(self) -> str:
        if self.heartbeat is None or (not self._trains and self.checkpoint is not None):
            return f" at step {self.checkpoint.step:,}" if self.checkpoint else ""
        progress = self.heartbeat.progress
        return f" at step {progress.step:,}" + (f" of {progress.total_steps:,}" if progress.total_steps else "")

    def _record(
        self, event: Event, reason: str, *, rung: str | None = None, action: str | None = None, result: str | None = None
    ) -> None:
        self._out.append(Record(event=event, reason=reason, rung=rung, action=action, result=result))
