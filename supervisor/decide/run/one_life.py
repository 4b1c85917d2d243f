"""One worker's life: what the worker is, what it has said, and what it was told. Pure; actions are returned.

Covers the stage, hold and freeze, the orders on their way, silence and other deadlines, and the kill. A new life is a new
`OneLife`, so nothing of the last one has to be reset. Does not know what is wanted of the worker, which `lifecycle.py` compares
with it, nor what follows from its death (`restarts.py`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from functools import partial

from memsup.about import LEFT_AS_TOLD
from memsup.shared import messages as m
from memsup.shared.commands import DEFAULT_RUN, command
from memsup.shared.messages import PauseMode, Phase
from memsup.supervisor.decide.events import By, Outcome
from memsup.supervisor.decide.ladder import Stance
from memsup.supervisor.decide.run import records
from memsup.supervisor.decide.run.actions import Action, Answer, Freeze, Kill, Send, Terminate, Thaw, Why
from memsup.supervisor.decide.run.card import Card
from memsup.supervisor.decide.run.leaving import Leaving
from memsup.supervisor.decide.run.orders import OrderBook, OrderMaker
from memsup.supervisor.decide.run.restarts import Cause
from memsup.supervisor.decide.run.tuning import Tuning

HELLO_WITHIN_S = 120.0
"""A worker that has not said Hello this many seconds after its start is killed."""
SILENT_S = 15.0
"""Without a heartbeat for this long the worker counts as unresponsive: orders are useless, freeze and kill are not."""
SILENT_FOR_EVER_S = 120.0
"""A worker that is silent for this long is killed and started again from its newest checkpoint."""
LEFTOVER_LEAVES_WITHIN_S = 90.0
"""A worker whose supervisor died checkpoints and leaves; after this time it is killed."""
ENDS_WITHIN_S = 2.0
"""A program whose connection has ended is gone itself after so many seconds, with what its end says, or its command goes on."""
TERM_WITHIN_S = 10.0
"""A command that has not ended this many seconds after SIGTERM is killed."""
BOUNDARY_WITHIN_S = 100.0
"""An attached program has this many seconds to come to its next boundary, counted anew with each; whoever waits for it waits
longer."""
HOLD_WITHIN_S = 10.0
"""An attached program that has not come to a boundary after so many seconds is frozen instead, which keeps its memory too."""
THAWED_GROWTH_BYTES = 8 << 20
"""Each process of a worker that was frozen for want of memory can get so much more before it has obeyed: enough to hear what it
is ordered, and to end a step."""
UNWINDS_WITHIN_S = 30.0
"""A program that has said that it leaves has this many seconds to end by itself."""


OUTLIVED_TOLD_S = 5.0
"""What a command has left running for longer than this is told of; helpers end a moment after their program."""


class Stage(enum.Enum):
    """What the worker is."""

    NONE = enum.auto()
    """There is no worker: none was started yet, or the last one is gone with its whole tree."""
    LEFTOVER = enum.auto()
    """A supervisor that died left it; it leaves by itself, and nothing is started before it is gone."""
    SPAWNED = enum.auto()
    """The worker was started and has not said Hello."""
    READY = enum.auto()
    """The worker has said Hello. (A foreign command is ready at once.)"""
    ENDING = enum.auto()
    """The kill was sent; the worker's tree is not gone yet."""


MOVES = {
    Stage.NONE: frozenset({Stage.LEFTOVER, Stage.SPAWNED}),
    Stage.LEFTOVER: frozenset({Stage.READY, Stage.NONE}),
    Stage.SPAWNED: frozenset({Stage.READY, Stage.ENDING, Stage.NONE}),
    Stage.READY: frozenset({Stage.ENDING, Stage.NONE}),
    Stage.ENDING: frozenset({Stage.NONE}),
}
"""The stages that may follow each stage. Those from and to `NONE` are the beginning and the end of a life."""


class Attachment(enum.Enum):
    """Whether a process of a foreign command speaks for it (`memsup.guard`)."""

    NONE = enum.auto()
    """None has said Hello: the command is fenced, and nothing else."""
    ATTACHED = enum.auto()
    LET_GO = enum.auto()
    """The one that did is gone, or has closed its connection; the command may live on."""


@dataclass
class OneLife:
    """One life of the worker, or the time without a worker between two lives (`Stage.NONE`)."""

    run: str = DEFAULT_RUN
    """The run's name, for commands that are suggested."""
    is_command: bool = False
    """The worker is a foreign command. Whether it reports and takes orders, `attachment` says."""
    attachment: Attachment = Attachment.NONE
    """Whether a command is attached. Between two lives this is still said of the last one."""
    about: m.About | None = None
    """What an attached program has said of itself. It is None where none is attached."""
    not_attached: m.NotAttachedReport | None = None
    """Why a process of a command is not attached. It is None where none has said."""
    stage: Stage = Stage.NONE
    since_s: float = 0.0
    """The worker came into its stage at this time. Of a leftover that had to be killed it is the time of the last kill."""
    heard_at_s: float = 0.0
    """The worker was heard of last at this time, or came into its stage."""
    has_begun: bool = False
    """The worker's process was started; until then it may yet be that it cannot be."""
    trains: bool = False
    """The worker has come as far as training. Between two lives this is still said of the last worker."""
    micro_tokens: int | None = None
    """The size of the worker's micro-batches. It is None while the worker has not said. Between two lives this is still said of
    the last worker.
    """
    limits_itself: bool = False
    """The worker is the built-in training, and keeps a soft limit of host memory below which it catches that it ran out."""
    keeps_every_s: float | None = None
    """How often the worker was told to hand its state over in memory. It is None where it was told not to, or nothing."""
    held: bool = False
    """The worker keeps its memory and does not compute, as it was told."""
    unresponsive: bool = False
    """The worker leaves orders without an answer, or is silent."""
    last_words: m.Finished | m.Failed | m.Leaving | None = None
    is_taken_over: bool = False
    """An earlier supervisor has started the command. How it ends, nobody will know."""
    killed_by_us: Cause | None = None
    """Why the worker is killed: `LEFT` where a person asked for that. It is None where the worker is not."""
    outlived_since_s: float | None = None
    """What the command has left running was seen first at this time. It is None while the command itself runs."""
    outlived_for_s: float = 0.0
    """It has been seen for so long."""
    card: Card = field(default_factory=Card)
    """Where a command that is not attached has its GPU memory."""
    orders: OrderBook = field(default_factory=OrderBook)
    leaving: Leaving = field(default_factory=Leaving)
    tuning: Tuning = field(default_factory=Tuning)
    _unheard: tuple[int, ...] = ()
    """The requests that a program has left without an answer, of whose end nothing is known yet."""
    _unheard_until_s: float = 0.0
    terminated_at_s: float | None = None
    """A command was sent SIGTERM at this time. It is None where it was not."""
    terminated_unattached: bool = False
    """It was sent SIGTERM before it was attached, so before there was anything that it could have been ordered to save."""
    frozen_instead: bool = False
    """An attached program did not come to a boundary at which it could hold, and is frozen for as long as it is to hold."""
    _hold_until_s: float | None = None
    """An attached program is to hold by then. It is None where it was not told to, or holds."""
    _left_at_s: float | None = None
    """An attached program said at this time that it leaves. It is None where it has not."""
    _frozen: Why | None = None
    """Why the worker is frozen. It is None while the worker is not frozen."""
    _held: Why | None = None
    """Why the worker was told to hold the last time. It is None where the worker never was."""

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def is_alive(self) -> bool:
        """Whether this supervisor has started the worker and not killed it since."""
        return self.stage in (Stage.SPAWNED, Stage.READY)

    @property
    def is_ready(self) -> bool:
        """Whether the worker has said Hello and lives."""
        return self.stage is Stage.READY

    @property
    def obeys(self) -> bool:
        """Whether the worker takes orders: the built-in training does, and an attached program until its training is done."""
        if not self.is_command:
            return True
        return self.attachment is Attachment.ATTACHED and not isinstance(self.last_words, m.Finished)

    @property
    def reports(self) -> bool:
        """Whether the worker tells of its steps and checkpoints, or did in this life."""
        return not self.is_command or self.attachment is not Attachment.NONE

    @property
    def frozen(self) -> bool:
        """Whether the whole tree stands still by force."""
        return self._frozen is not None

    @property
    def rests(self) -> bool:
        """Whether the worker stands still for as long as somebody wants it to."""
        return self.held or (self.is_command and self.frozen)

    @property
    def computes(self) -> bool:
        """Whether the worker trains, and nothing keeps it from that."""
        return self.trains and self.is_ready and not self.rests and not self.frozen

    @property
    def owes_last_words(self) -> bool:
        """Whether the word on why the worker has ended, if it has, may be on its way.

        Of a foreign command that takes no orders that is the order to end which we get ourselves: where a machine goes down,
        everybody is told, and the command may be quicker than we are.
        """
        return self.is_alive and (self.last_words is None if self.obeys else self.leaving.ending is None)

    def enter(self, stage: Stage, now_s: float) -> None:
        """The worker comes into `stage`, which must be a legal move."""
        assert stage in MOVES[self.stage], f"{self.stage} → {stage}"
        self.stage, self.since_s, self.heard_at_s = stage, now_s, now_s

    def take_over(self, now_s: float, card: Card) -> None:
        """The command, which a supervisor that died had stand still, is this one's from now on."""
        self.enter(Stage.READY, now_s)
        self.has_begun, self.is_taken_over, self.card = True, True, card
        self._frozen = Why("a supervisor that died had it stand still")

    def attach(self, about: m.About) -> None:
        """A process of a command speaks for it from now on, and says what it is."""
        self.attachment, self.last_words, self._left_at_s = Attachment.ATTACHED, None, None
        self.orders.done_within_s = BOUNDARY_WITHIN_S
        self.describe(about)

    def describe(self, about: m.About) -> None:
        """Something is so of the attached program."""
        self.about, self.tuning.cuts = about, about.cuts

    def let_go(self, now_s: float) -> list[Action]:
        """The process that spoke for a command is gone. The answers to those who wait for it; and where it has left as it was
        told, the rest of the command is told to end.
        """
        self._unheard, self._unheard_until_s = self._left_unheard(), now_s + ENDS_WITHIN_S
        self.attachment, self.held, self.frozen_instead, self._hold_until_s = Attachment.LET_GO, False, False, None
        self.about = None
        self.leaving.told_at_s = None  # what is left of the command is to be told in its own way
        return self.terminate(now_s) if isinstance(self.last_words, m.Leaving) else []

    def own_exit_status(self, exit_status: int | None) -> int | None:
        """What a person is told of how it ended. It is None where the program has left as it was told, and what has ended then,
        since it was told to, is what had started it: a launcher, or a shell.
        """
        is_another = self.attachment is Attachment.LET_GO and exit_status != LEFT_AS_TOLD
        is_told = self.terminated_at_s is not None and isinstance(self.last_words, m.Leaving)
        return None if is_another and is_told else exit_status

    # -- what it says -------------------------------------------------------------------------------------------------

    def beat(self, phase: Phase, batch: m.BatchShape | None, data_limit_bytes: int | None = None) -> None:
        """The worker's main thread is in `phase`, and cuts its batches like this. `batch` is None while it does not cut any
        yet, `data_limit_bytes` where it keeps no soft limit.
        """
        self.micro_tokens = batch.micro_tokens if batch else self.micro_tokens
        self.limits_itself = data_limit_bytes is not None and not self.is_command
        self.trains = self.trains or phase not in (Phase.STARTING, Phase.LOADING)
        self.held = phase is Phase.HOLDING or (self.held and phase is Phase.SAVING)  # a held worker saves what it has

    def answered(self, now_s: float, report: m.Done | m.OrderFailed) -> list[Action]:
        """The ledger's line of an order that was carried out, or could not be, and the answers to those who asked for it."""
        pending = self.orders.answered(report.order_id)
        if pending is None:
            return []
        done = report if isinstance(report, m.Done) else None
        known = self.leaving.cannot is not None  # told once, however often it is tried
        match pending.order:
            case m.Pause(mode=PauseMode.HOLD):
                self.held = done is not None
            case m.Resume():
                self.held = self.held and not done
            case m.Stop() | m.Pause() if done is not None:  # the process may be killed before it says this once more
                self.last_words = self.last_words or m.Leaving(reason=pending.why.reason, checkpoint=done.checkpoint)
            case m.Stop() | m.Pause() if self.leaving.ending is not None:
                self.leaving.failed(now_s, report.detail)
                if known:
                    return []
        outcome = Outcome.DONE if done else Outcome.FAILED
        path = done.checkpoint.path if done and done.checkpoint else None
        record = records.order(pending, outcome, f"{outcome}: {report.detail}", done)
        return [record, *(Answer(token, done is not None, report.detail, path) for token in pending.requests)]

    def ended(self, became: str) -> list[Action]:
        """The answers to those who wait for an order that the worker, which is gone, will not carry out; `became` says what has
        become of it.
        """
        unheard, self._unheard = self._left_unheard(), ()
        text = f"It ended before it had done that. {became} Its log: {command('logs', self.run)}"
        return [Answer(token, False, text) for token in unheard]

    def _left_unheard(self) -> tuple[int, ...]:
        """The requests of those who wait for an order, once nobody is there any more who would carry it out."""
        return self._unheard + tuple(token for pending in self.orders.drop_all() for token in pending.requests)

    def outlived(self, now_s: float, processes: int) -> list[Action]:
        """The ledger's line of what a command has left running, once, where that does not end soon."""
        if self.outlived_since_s is None:
            self.outlived_since_s = now_s
        before_s, self.outlived_for_s = self.outlived_for_s, now_s - self.outlived_since_s
        return [records.outlived(processes)] if before_s < OUTLIVED_TOLD_S <= self.outlived_for_s else []

    # -- what it is told ----------------------------------------------------------------------------------------------

    def order(self, now_s: float, make: OrderMaker, why: Why, requests: tuple[int, ...] = ()) -> Send:
        """The message that orders something of the worker; those whose `requests` it answers are told of its end."""
        return Send(self.orders.issue(make, why, now_s, self.micro_tokens, requests))

    def freeze(self, why: Why | None, *, emergency: bool = False) -> list[Action]:
        """The actions that freeze the worker for `why`, or thaw it where `why` is None."""
        before, self._frozen = self._frozen, why
        if why is not None:
            return [Freeze(), records.freeze(why, emergency=emergency)] if before is None else []
        most_growth_bytes = THAWED_GROWTH_BYTES if self.limits_itself else None
        return [] if before is None else [Thaw(most_growth_bytes), records.thaw(before)]

    def hold(self, now_s: float, why: Why | None, *, save: bool) -> list[Action]:
        """The actions that make the worker hold for `why`, and with `save` write a checkpoint; or let it go on where `why` is
        None.
        """
        self._held = why or self._held
        if why is None or self.held:
            self._hold_until_s = None
            self.frozen_instead = self.frozen_instead and why is not None
        if why is not None and not self.held and not self.frozen_instead and not self.orders.in_flight(m.Pause):
            self._hold_until_s = now_s + HOLD_WITHIN_S if self.is_command else None
            actions: list[Action] = [self.order(now_s, partial(m.Pause, mode=PauseMode.HOLD), why)]
            return [*actions, self.order(now_s, m.Checkpoint, why)] if save else actions
        if why is None and self.held and not self.orders.in_flight(m.Resume):
            by = self._held.by if self._held else By.SUPERVISOR
            return [self.order(now_s, m.Resume, Why("nothing holds it any more", by))]
        return []

    def leave(self, now_s: float, stance_why: Why) -> list[Action]:
        """The actions that tell the worker to leave, where that is due."""
        if not self.leaving.is_due(now_s):
            return []
        order, why = self.leaving.order(), self.leaving.why(stance_why)
        self.leaving.told_at_s = now_s
        return [self.order(now_s, order, why)] if self.obeys else self.terminate(now_s)

    def terminate(self, now_s: float) -> list[Action]:
        """The actions that tell a command to end by SIGTERM, once."""
        if self.terminated_at_s is not None or not self.is_alive:
            return []
        self.terminated_at_s, self.terminated_unattached = now_s, not self.reports
        return [Terminate()]

    def tune(self, now_s: float, stance: Stance) -> list[Action]:
        """The actions that tell the worker how much at once and how fast to compute."""
        return [self.order(now_s, make, why) for make, why in self.tuning.due(stance, self.orders)]

    def kill(self, now_s: float, cause: Cause, why: Why) -> list[Action]:
        """The actions that kill the worker's whole tree, where there is one that is not killed already. `cause` is `LEFT` where
        its end is what was asked for, and no death.
        """
        if self.stage in (Stage.NONE, Stage.ENDING):
            return []
        self.killed_by_us = cause
        if self.stage is Stage.LEFTOVER:  # still nothing of ours, and its end is no death of ours
            self.since_s = now_s
        else:
            self.enter(Stage.ENDING, now_s)
        return [Kill(), records.kill(why, None if cause is Cause.LEFT else cause)]

    # -- deadlines ----------------------------------------------------------------------------------------------------

    def stood_still(self, now_s: float, for_s: float) -> None:
        """The supervisor itself did not run for so long: a container was paused, a virtual machine stopped. In that time nobody
        could be heard, and mostly the worker did not run either, so no deadline counts it.
        """
        self.since_s, self.heard_at_s = min(now_s, self.since_s + for_s), min(now_s, self.heard_at_s + for_s)
        self.orders.postpone(for_s)
        self._unheard_until_s += for_s
        self._hold_until_s = None if self._hold_until_s is None else self._hold_until_s + for_s
        self.terminated_at_s = None if self.terminated_at_s is None else min(now_s, self.terminated_at_s + for_s)
        self._left_at_s = None if self._left_at_s is None else min(now_s, self._left_at_s + for_s)

    def deadlines(self, now_s: float, *, cannot_wait: bool) -> list[Action]:
        """The actions that follow from silence and from orders without an answer. `cannot_wait`: memory is needed back."""
        actions = self._silence(now_s)
        if self._unheard and now_s > self._unheard_until_s:
            actions += self.ended("The rest of its command still runs.")
        if self._hold_until_s is not None and now_s > self._hold_until_s and self.orders.in_flight(m.Pause):
            self.frozen_instead, self._hold_until_s = True, None
            self.orders.forget(m.Pause)
        for pending in self.orders.overdue(now_s):
            self.unresponsive = not self.is_command
            actions.append(records.order(pending, Outcome.UNANSWERED, "no answer in time"))
            text = f"The worker has not answered in time; see: {command('status', self.run)}"
            actions += [Answer(token, False, text) for token in pending.requests]
            urgent = isinstance(pending.order, m.Stop | m.Pause) and (self.leaving.told or cannot_wait)
            if urgent and self.is_ready and self.is_command:
                actions += self.terminate(now_s)
            elif urgent and self.is_ready and not self.frozen:
                why = Why("it did not carry out an order that could not wait", pressures=pending.why.pressures)
                actions += self.kill(now_s, Cause.UNRESPONSIVE, why)
        return actions

    def _silence(self, now_s: float) -> list[Action]:
        in_stage_s, silent_s = now_s - self.since_s, now_s - self.heard_at_s
        match self.stage:
            case Stage.LEFTOVER if in_stage_s > LEFTOVER_LEAVES_WITHIN_S:
                return self.kill(
                    now_s, Cause.UNRESPONSIVE, Why(f"the earlier worker did not leave within {LEFTOVER_LEAVES_WITHIN_S:.0f} s")
                )
            case Stage.SPAWNED if in_stage_s > HELLO_WITHIN_S:
                why = Why(f"no sign of life within {HELLO_WITHIN_S:.0f} s of its start")
                return self.kill(now_s, Cause.UNRESPONSIVE, why)
            case Stage.READY if self.is_command:
                return self._does_not_end(now_s)
            case Stage.READY if not self.frozen:
                self.unresponsive = self.unresponsive or silent_s > SILENT_S
                if silent_s > SILENT_FOR_EVER_S:
                    return self.kill(now_s, Cause.UNRESPONSIVE, Why(f"not a word for {silent_s:.0f} s"))
        return []

    def _does_not_end(self, now_s: float) -> list[Action]:
        """The actions where a command was told to end and has not."""
        if self.terminated_at_s is not None:
            if now_s - self.terminated_at_s <= TERM_WITHIN_S:
                return []
            why = Why(f"the command did not end within {TERM_WITHIN_S:.0f} s of SIGTERM")
            return self.kill(now_s, Cause.LEFT if isinstance(self.last_words, m.Leaving) else Cause.UNRESPONSIVE, why)
        if not isinstance(self.last_words, m.Leaving):
            return []
        self._left_at_s = now_s if self._left_at_s is None else self._left_at_s
        return self.terminate(now_s) if now_s - self._left_at_s > UNWINDS_WITHIN_S else []
