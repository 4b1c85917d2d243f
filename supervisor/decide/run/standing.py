"""Where a run stands: what the user wants, what the ladder asks, what the worker is, and all that follows from the three. Pure.

Covers what is known of the run and the questions that are answered from it: for the events, for the ladder (`view`), for people
who wait (`run_view`) and for `status`. Nothing changes here; that is done by the events of `lifecycle.py`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import InitVar, dataclass, field

import msgspec

from memsup.shared import messages as m
from memsup.shared.commands import DEFAULT_RUN
from memsup.shared.messages import PauseMode
from memsup.shared.readings import KnownProgress
from memsup.shared.record import Awaited, NotBefore
from memsup.shared.status import RunState, Wanted
from memsup.supervisor.decide.events import By
from memsup.supervisor.decide.ladder import HoldReason, Stance, WorkerView
from memsup.supervisor.decide.run.actions import BY_HOURS, BY_USER, Why
from memsup.supervisor.decide.run.card import CardView, Place
from memsup.supervisor.decide.run.freed import NOTHING_KNOWN, GivenBack
from memsup.supervisor.decide.run.hours import WORTH_S, Clock, Rest, needed_lead_s, rest_of
from memsup.supervisor.decide.run.in_memory import Held, InMemory
from memsup.supervisor.decide.run.leaving import Ending, Leaving
from memsup.supervisor.decide.run.one_life import OneLife, Stage
from memsup.supervisor.decide.run.requests import RunView, Waiters
from memsup.supervisor.decide.run.restarts import Budget, Restarts, how_it_ended
from memsup.supervisor.decide.run.unsaved import Unsaved
from memsup.supervisor.decide.run.waiting import Fate, what_for
from memsup.supervisor.decide.run.warm import Standby

MOST_DAMAGE_TOLD = 5
"""`attention` has at most this many sentences about damaged checkpoints; the ledger has all."""


@dataclass(kw_only=True)
class Standing:
    """Where one run stands under one supervisor."""

    wanted: Wanted
    pause_mode: PauseMode
    """How a pause that is wanted is to be carried out."""
    run_id: str
    lease_s: float
    """A worker that hears nothing from its supervisor for this long leaves."""
    memory_limit_bytes: int | None
    """What the worker's whole tree may use. It is None where nothing bounds it."""
    run: str = DEFAULT_RUN
    """The run's name, for commands that are suggested."""
    is_command: bool = False
    """The worker is a foreign command. Whether it reports and takes orders, `worker.attachment` says."""
    continue_on_cpu: bool = False
    """Whether the run goes on on the CPU when the GPU is lost; never for a command, which chooses its device itself."""
    most_micro_tokens: int | None = None
    """Micro-batches stay below this size however calm memory is (`after_power_loss.py`). It is None where there is no such
    bound."""
    queued: tuple[Awaited, ...] | None = None
    """The runs that are still waited for before this one begins; where none is left, its time, or room beside others. It
    is None once the run has begun."""
    not_before: NotBefore | None = None
    """When a queued run may begin. It is None where the time does not matter, or has come."""
    clock: Clock | None = None
    """What the clock said last of the run's hours. It is None where the run has none."""
    waived_unix_s: float | None = None
    """When a person had the run go on whatever its hours say, as it does until they end next. It is None where nobody did."""
    checkpoint: m.CheckpointNote | None = None
    """The newest checkpoint. It is None where there is none."""
    before: KnownProgress = field(default_factory=KnownProgress)
    """How far the run was when this supervisor began, of which its newest checkpoint tells."""
    budget: InitVar[Budget | None] = None
    """What is left of the restarts. None means all of them."""

    saves_elsewhere: bool = False
    """Whether this machine has joined another one's run (docs/ranks.md). What it computes is that one's, which saves it, so
    nothing is lost with a worker here, and checkpoints that its worker tells of do not lie here."""
    standby: Standby = field(default_factory=Standby)
    in_memory: InMemory = field(default_factory=InMemory)

    rest: Rest | None = field(init=False, default=None)
    """How the run rests outside of its hours. It is None where it is within them, or has none."""
    stance: Stance = field(default_factory=Stance)
    heartbeat: m.Heartbeat | None = None
    """What the worker said last. Until a new life has loaded, its progress is what the life before had reached."""
    left_behind: tuple[tuple[Awaited, Fate], ...] = ()
    """Those of `queued` that do not get on until somebody does something about it, and why."""
    no_room: str | None = None
    """Why there is no room yet for the run, whose turn it is, a sentence. It is None where that was not tried yet."""
    terminal: RunState | None = None
    """How the run is over. It is None while the run is not."""
    outcome: m.Finished | None = None
    """What a run that is finished came to."""
    failure: str | None = None
    """Why a failed run failed, for people. It is None where the run has not failed."""
    death: str | None = None
    """What the last worker died of, a sentence. It is None where the worker left as it was told, none has ended, or another one
    lives."""
    exit_status: int | None = None
    """The exit code of the last worker, or minus the signal's number. It is None where none has ended, or that is not known."""
    given_back: GivenBack | None = NOTHING_KNOWN
    """What the last worker gave back. It is None while we still wait for the GPU's own count; no worker is started until
    then."""
    card_seen: CardView = field(default_factory=CardView)
    """What was seen last of what the worker has on the GPU, and of the room for that in RAM."""
    worker: OneLife = field(init=False)
    recovery: Restarts = field(init=False)
    work_s: float | None = 0.0
    """The time that this worker, or the last one, has computed since its newest checkpoint. It is None where that is not known,
    since a newer one was taken away."""
    waiters: Waiters = field(default_factory=Waiters)
    damage: deque[str] = field(default_factory=lambda: deque(maxlen=MOST_DAMAGE_TOLD))
    """What the worker said of damaged checkpoints, and what was seen of those that are gone."""
    not_saved: str | None = None
    """Why there is no newer checkpoint, a sentence. It is None where the last one that was due was written."""

    def __post_init__(self, budget: Budget | None) -> None:
        self.worker = OneLife(run=self.run, is_command=self.is_command)
        self.recovery = Restarts(budget or Budget())
        self.rest = rest_of(self.clock, self.waived_unix_s, self.lead_s)

    # -- what others ask ----------------------------------------------------------------------------------------------

    @property
    def state(self) -> RunState:
        """Where the run is, in the one word that people see."""
        worker = self.worker
        if self.terminal is not None:
            return self.terminal
        if worker.leaving.for_good:
            return RunState.STOPPING
        if self.wanted is Wanted.PAUSED:
            return RunState.PAUSED if worker.stage is Stage.NONE or worker.rests else RunState.PAUSING
        if self.queued or self.not_before is not None:
            return RunState.WAITING
        if self.rest is not None:
            return RunState.PAUSED if worker.stage is Stage.NONE or worker.rests else RunState.PAUSING
        if self.queued is not None:
            return RunState.WAITING
        if HoldReason.HEAT in self.stance.holds:
            return RunState.COOLING
        makes_room = worker.leaving.ending is Ending.MAKE_ROOM
        if self.stance.holds or worker.frozen or makes_room or self.recovery.recovering:
            return RunState.RECOVERING
        return RunState.RUNNING if worker.is_ready and (self.is_command or worker.trains) else RunState.STARTING

    @property
    def stage(self) -> Stage:
        """What the worker is."""
        return self.worker.stage

    @property
    def is_of_another(self) -> bool:
        """Whether an earlier supervisor has started the worker, so that its end is seen by its fence alone."""
        return self.stage is Stage.LEFTOVER or (self.worker.is_taken_over and self.worker.is_alive)

    @property
    def held(self) -> bool:
        """Whether the worker holds, as it was told."""
        return self.worker.held

    @property
    def frozen(self) -> bool:
        """Whether the worker's tree stands still by force."""
        return self.worker.frozen

    @property
    def unresponsive(self) -> bool:
        """Whether the worker leaves orders without an answer, or is silent."""
        return self.worker.unresponsive

    @property
    def leaving(self) -> Leaving:
        """How far the worker is with leaving."""
        return self.worker.leaving

    @property
    def owes_last_words(self) -> bool:
        """Whether the word on why the worker has ended, if it has, may be on its way."""
        return self.worker.owes_last_words

    @property
    def restarts(self) -> int:
        """How often the worker was started again after a death."""
        return self.recovery.count - self.recovery.due

    @property
    def on_cpu(self) -> bool:
        """Whether the GPU was lost, and the worker is told to leave it alone."""
        return self.recovery.on_cpu

    @property
    def micro_tokens_limit(self) -> int | None:
        """The most tokens with which the next life begins. It is None where nothing has ended for memory."""
        return self.recovery.micro_tokens_limit

    @property
    def attention(self) -> tuple[str, ...]:
        """Sentences about checkpoints that were found damaged or gone, those that were used instead, and the one that could not
        be written.
        """
        return (*self.damage, self.not_saved) if self.not_saved else tuple(self.damage)

    @property
    def unsaved(self) -> Unsaved:
        """What this worker, or the last one where there is none, has computed that no checkpoint holds."""
        kept_step = self.newer.step if self.newer is not None else None
        if not self.worker.trains or self.heartbeat is None or self.saves_elsewhere:
            return Unsaved(checkpoint=self.checkpoint, kept_step=kept_step)
        steps, work_s = self.heartbeat.progress.step - (self.newest_step or 0), self.work_s
        if self.newer is not None and work_s is not None:
            work_s = None if self.newer.work_s is None else max(0.0, work_s - self.newer.work_s)
        return Unsaved(checkpoint=self.checkpoint, steps=max(0, steps), work_s=work_s, kept_step=kept_step)

    @property
    def newer(self) -> Held | None:
        """What is held in memory, where it is newer than every checkpoint. It is None where that is not so."""
        held, checkpoint = self.in_memory.held, self.checkpoint
        return held if held is not None and (checkpoint is None or held.step > checkpoint.step) else None

    @property
    def newest_step(self) -> int | None:
        """The step that the next worker would go on from. It is None where it would begin anew."""
        if self.newer is not None:
            return self.newer.step
        return self.checkpoint.step if self.checkpoint is not None else None

    @property
    def keeps_nothing(self) -> bool:
        """Whether the next life begins with nothing of memsup's: a command that is not attached, and never was."""
        return not self.worker.reports and self.checkpoint is None

    @property
    def came_before(self) -> bool:
        """Whether a command that is not attached was so in an earlier life."""
        has_told = self.checkpoint is not None or self.heartbeat is not None
        return self.is_command and not self.worker.reports and has_told

    @property
    def steps_left(self) -> tuple[int, int] | None:
        """The step at which an attached program is, and the last one. It is None where no step is left, or nobody knows."""
        if not (self.is_command and self.worker.reports and self.heartbeat):
            return None
        step, total = self.heartbeat.progress.step, self.heartbeat.progress.total_steps
        return (step, total) if total is not None and step < total else None

    @property
    def progress(self) -> KnownProgress:
        """How far the run has come, saved or not: a checkpoint may hold steps that the worker did not live to tell of."""
        known = self.heartbeat.progress if self.heartbeat else self.before
        newest_step = self.newest_step
        if newest_step is None or known.step is None or known.step >= newest_step:
            return known
        return msgspec.structs.replace(known, step=newest_step)

    @property
    def is_settled(self) -> bool:
        """Whether the worker is what it is meant to be, and nothing is on its way."""
        worker = self.worker
        if self.queued is not None and worker.stage is Stage.NONE:
            return not self.waiters
        moves = worker.orders.in_flight() or self.waiters or worker.leaving.ending or worker.frozen or worker.unresponsive
        return worker.is_ready and not moves

    def view(self) -> WorkerView:
        """What the ladder must know of the worker."""
        worker = self.worker
        batch = self.heartbeat.batch if self.heartbeat else None
        obeys = worker.is_ready and worker.obeys and not worker.unresponsive
        return WorkerView(
            alive=worker.is_alive,
            takes_orders=obeys and not worker.leaving.ending,
            order_in_flight=worker.orders.in_flight(m.LimitMicroBatch),
            can_shrink=batch is not None and (batch.micro_rows is None or batch.micro_rows > 1),
            limits_itself=worker.limits_itself,
            held=worker.rests,
            frozen=worker.frozen,
        )

    @property
    def may_stand_by(self) -> bool:
        """Whether a process may stand by for the next worker."""
        return self._may_be_prepared and self.standby.asked != "off"

    @property
    def may_be_in_memory(self) -> bool:
        """Whether a state may be held in memory for the next worker."""
        return self._may_be_prepared and self.in_memory.asked != "off"

    @property
    def state_needs_bytes(self) -> int | None:
        """What states in memory will take besides what is held already; one takes about as much as a checkpoint on disk. It is
        None before there is one.
        """
        return self.in_memory.needed_bytes(self.checkpoint.size_bytes if self.checkpoint is not None else None)

    @property
    def _may_be_prepared(self) -> bool:
        """Whether memory may be taken for the next worker: one would follow, and none is to be given back."""
        goes_on = self.terminal is None and self.wanted is not Wanted.STOPPED and self.queued is None and self.rest is None
        gives_back = self.wants_release or self.stance.release or self.worker.leaving.ending is not None
        return goes_on and not gives_back and not self.is_command

    # -- what is to follow --------------------------------------------------------------------------------------------

    def may_begin(self, now_s: float) -> bool:
        """Whether, where there is no worker, one is to be started now."""
        is_kept = self.queued is not None or self.rest is not None
        wanted = self.wanted is Wanted.RUNNING and not is_kept and not self.stance.holds
        return wanted and self.given_back is not None and now_s >= self.recovery.not_before_s

    @property
    def is_its_turn(self) -> bool:
        """Whether a queued run waits for nothing any more but room."""
        return self.queued == () and self.not_before is None and self.rest is None and self.wanted is Wanted.RUNNING

    @property
    def waits(self) -> str | None:
        """What a queued run waits for, in a clause. It is None where the run has begun."""
        return None if self.queued is None else what_for(self.queued, self.not_before, self.rest)

    @property
    def lead_s(self) -> float:
        """How long before its hours end the run is to rest. Where there is no worker, none is started for that little time."""
        speed, batch = self.progress.samples_per_s, self.heartbeat.batch if self.heartbeat else None
        step_s = batch.effective / speed if batch is not None and batch.effective and speed else None
        needed_s = needed_lead_s(self.checkpoint.save_s if self.checkpoint else None, step_s)
        return needed_s if self.worker.is_alive and self.rest is None else max(needed_s, WORTH_S)

    @property
    def wants_release(self) -> bool:
        """Whether the user wants the run paused, and its memory back."""
        return self.wanted is Wanted.PAUSED and self.pause_mode is PauseMode.RELEASE

    @property
    def why_released(self) -> Ending | None:
        """Why the worker is to give its memory back and come again later: for the user, since the run is outside of its hours,
        or for the ladder. It is None where the worker is not to.
        """
        if self.wants_release and (self.worker.obeys or self.comes_again):
            return Ending.RELEASE
        if self.rest is not None and self.worker.obeys:
            return Ending.HOURS
        return Ending.MAKE_ROOM if self.stance.release else None

    @property
    def comes_again(self) -> bool:
        """Whether a command is on its way to being attached again: it has computed nothing yet that its end would lose."""
        return self.came_before and self.worker.is_alive and self.worker.not_attached is None

    @property
    def why_off_card(self) -> Why | None:
        """Why a program that takes no orders is to leave the GPU: for the user, since the run is outside of its hours, or for
        others who need the card. It is None where the program is to have it.
        """
        if not self.is_command or self.worker.obeys or self.worker.leaving.ending is not None:
            return None
        if self.wants_release:
            return BY_USER
        if self.rest is not None:
            return BY_HOURS
        return self.stance_why if self.stance.leave_card else None

    @property
    def must_leave(self) -> bool:
        """Whether what the worker was asked to leave for still holds."""
        match self.worker.leaving.ending:
            case Ending.RELEASE:
                return self.wants_release
            case Ending.HOURS:
                return self.rest is not None
            case Ending.MAKE_ROOM:
                return self.stance.release
            case _:
                return True

    @property
    def why_frozen(self) -> Why | None:
        """Why the worker is to be frozen: for the ladder in an emergency, and for a command that takes no orders, or comes to
        no boundary, for each reason to hold. It is None where the worker is not to be frozen.
        """
        if self.stance.freeze:
            return self.stance_why
        if self.worker.card.moves:  # the driver works inside of its processes
            return None
        if self.worker.card.is_off and self.worker.leaving.ending is None:
            return self.why_off_card
        cannot_hold = not self.worker.obeys or self.worker.frozen_instead
        return self.why_held if cannot_hold and self.worker.leaving.ending is None else None

    @property
    def why_held(self) -> Why | None:
        """Why the worker is to hold: since it cannot save what it has, for the user, since the run is outside of its hours and
        memsup cannot have it saved, or for the ladder. It is None where the worker is not to hold.
        """
        if self.worker.leaving.cannot is not None:
            return Why("what it has computed cannot be saved")
        if self.wanted is Wanted.PAUSED and self.pause_mode is PauseMode.HOLD:
            return BY_USER
        if self.rest is not None and not self.worker.obeys:
            return BY_HOURS
        if not self.stance.holds:
            return None
        return Why(self.stance.reason, By.LADDER, tuple(why for why in HoldReason if why in self.stance.holds))

    @property
    def stance_why(self) -> Why:
        """Why the ladder does what it does."""
        return Why(self.stance.reason, By.LADDER, self.stance.pressures)

    def run_view(self) -> RunView:
        """What those who wait for the run must know of it."""
        worker = self.worker
        on_card = worker.card.place is Place.ON_CARD
        return RunView(
            run=self.run,
            keeps_nothing=self.keeps_nothing,
            terminal=self.terminal,
            failure=self.failure,
            wanted=self.wanted,
            pause_mode=self.pause_mode,
            waits=None if self.is_its_turn and self.no_room is None else self.waits,
            is_gone=worker.stage is Stage.NONE,
            rests=worker.rests,
            loads=worker.is_alive and worker.has_begun and not self.is_command and not worker.trains,
            runs=worker.is_ready and not worker.rests and on_card and not worker.orders.in_flight(m.Pause),
            off_card=worker.card.is_off and worker.frozen,
            off_card_because=self.stance.reason if self.stance.leave_card and not on_card else None,
            card_trouble=worker.card.sentence(self.run),
            is_silent=worker.unresponsive,
            held_because=self.stance.reason if self.stance.holds else None,
            cannot_leave=worker.leaving.sentence(self.checkpoint, self.run),
            given_back=self.given_back,
            death=self.death,
            ended=None if self.exit_status is None else how_it_ended(self.exit_status),
            unsaved=self.unsaved,
            where=self._where(),
        )

    def _where(self) -> str:
        step, total = self.progress.step, self.progress.total_steps
        if not self.worker.trains:  # it goes on from what was saved, or anew, wherever a worker before it was
            step = self.newest_step
        return ("" if step is None else f" at step {step:,}") + (f" of {total:,}" if step is not None and total else "")
