"""What a training program owes its supervisor, and nothing about training: orders at boundaries, progress, checkpoints.

The program calls `boundary` wherever its state is whole (between micro-batches, batches of an evaluation, pieces of loading).
What the session asks of it is `Program`: how to write a checkpoint, how to use less. Everything ordered is carried out inside
`boundary`, in the main thread, and answered there. A pause blocks in it; leaving raises `Leave` out of it.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from memsup.checkpoint.errors import DamagedWhenWritten
from memsup.shared.clock import monotonic_s
from memsup.shared.log import log
from memsup.shared.messages import (
    AnyOrder,
    AnyReport,
    BatchShape,
    Checkpoint,
    CheckpointNote,
    Decided,
    DecisionKind,
    Done,
    FailureCause,
    LimitMemory,
    LimitMicroBatch,
    OrderFailed,
    Pace,
    Pause,
    PauseMode,
    Phase,
    Resume,
    Stop,
    WorkerMemory,
)
from memsup.shared.readings import Evaluation, NodeReading
from memsup.worker.kept import Lifeline
from memsup.worker.link import MustFail, MustLeave, RanksNow, Snapshot
from memsup.worker.memory import hand_back

SIGN_OF_LIFE_S = 1.0
"""How often the main thread counts as moving while it waits, held or in a gap of its pace."""


class Leave(BaseException):
    """Unwinds the program: it is to exit as it was told, not because anything is wrong. No `except Exception` stops it."""

    def __init__(self, reason: str, checkpoint: CheckpointNote | None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.checkpoint = checkpoint


class GiveUp(Exception):  # noqa: N818 - what it says to do, like SystemExit
    """The run cannot go on. The text is one plain sentence with the next step; the rest is as in `Failed`."""

    def __init__(
        self,
        cause: FailureCause,
        message: str,
        *,
        step: int | None = None,
        device_others_bytes: int | None = None,
        exit_status: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(message)
        self.cause = cause
        self.step = step
        self.rank = rank
        self.device_others_bytes = device_others_bytes
        self.exit_status = exit_status


class Upstream(Protocol):
    """Whoever a session answers to, as it knows it: the supervisor (`link.Link`), or rank 0 (`ranks/link.py`)."""

    orders: queue.SimpleQueue[AnyOrder | MustLeave | MustFail]
    snapshot: Snapshot
    read_memory: Callable[[], WorkerMemory]
    ranks_now: RanksNow
    """Rank 0's alone."""

    def report(self, message: AnyReport) -> None:
        """Says something, from any thread."""
        ...


class Program(Protocol):
    """What a session asks of the program that trains: in the main thread, but for `read_memory`."""

    @property
    def is_loaded(self) -> bool:
        """Whether there are a state that could be saved and a plan that could be limited."""
        ...

    def save(self, *, last: bool) -> CheckpointNote:
        """Writes and verifies a checkpoint of the state as it is. The `last` one of this life may use the room on the disk that
        is kept free for it. Raises what a save raises.
        """
        ...

    def limit_micro_batch(self, order: LimitMicroBatch) -> int:
        """Takes a limit into the plan; returns the `micro_tokens` in force from now on."""
        ...

    def limit_memory(self, order: LimitMemory) -> str:
        """Limits the device's memory; returns what came of it, as a clause."""
        ...

    def read_memory(self) -> WorkerMemory:
        """What is held now; quick, and called from the link's thread. Raises OSError."""
        ...

    def pass_on(self, order: Pace | Pause | Resume) -> None:
        """Has whatever computes beside this process obey the order as well."""
        ...

    def finish_queued(self) -> None:
        """Waits until all that was begun is computed, where a device computes it later than it is told to."""
        ...


class Session:
    """One life of a worker under its supervisor. Belongs to the main thread."""

    def __init__(self, link: Upstream, lifeline: Lifeline | None = None) -> None:
        """`lifeline` is where states in memory go and come from. It is None where the program has none to hand over."""
        self.link, self.lifeline = link, lifeline
        self._program: Program | None = None
        self.held_s = 0.0
        """The time spent in pauses so far; a rate of work leaves it out."""
        self._held = False
        self._held_since_s = 0.0
        self._phase_before_hold = Phase.STARTING
        self._duty_fraction = 1.0
        self._rest_until_s = 0.0
        self._busy_since_s = monotonic_s()
        self._postponed: list[AnyOrder | MustLeave | MustFail] = []

    def begin(self, program: Program) -> None:
        """Has orders go to `program` from now on. Those that came before have waited for it."""
        assert self._program is None, "a session has one program"
        self._program = program
        if self._duty_fraction < 1:
            program.pass_on(Pace(order_id=0, reason="the pace before", duty_fraction=self._duty_fraction))
        self.link.read_memory = program.read_memory

    @property
    def _loaded(self) -> Program | None:
        """The program. None means that it has nothing yet that could be saved or limited."""
        return self._program if self._program is not None and self._program.is_loaded else None

    def worked_s(self) -> float:
        """A clock that stands still in pauses."""
        return monotonic_s() - self.held_s

    # ---------------------------------------------------------------------------------------------------------------
    # Telling

    def publish(
        self,
        *,
        batch: BatchShape | None = None,
        checkpoint: CheckpointNote | None = None,
        digest: str | None = None,
        evaluation: Evaluation | None = None,
        nodes: tuple[NodeReading, ...] | None = None,
        **progress: Any,
    ) -> None:
        """What heartbeats say from now on; what is not named stays. `progress` are fields of `messages.Progress`."""
        seen = self.link.snapshot
        self.link.snapshot = Snapshot(
            progress=msgspec.structs.replace(seen.progress, **progress),
            batch=batch or seen.batch,
            checkpoint=checkpoint or seen.checkpoint,
            digest=digest or seen.digest,
            evaluation=evaluation or seen.evaluation,
            nodes=seen.nodes if nodes is None else nodes,
        )

    def tick(self) -> None:
        """Tells that something was finished, so the main thread lives. It is cheap and carries out no order."""
        self.publish(ticks=self.link.snapshot.progress.ticks + 1)

    def decided(
        self,
        what: DecisionKind,
        sentence: str,
        *,
        checkpoint: Path | None = None,
        step: int | None = None,
        rows: int | None = None,
    ) -> None:
        """Puts on record, in the log and in the ledger, what the worker decided by itself; see `messages.Decided`."""
        log.warning(sentence, decision=what)
        path = str(checkpoint) if checkpoint is not None else None
        self.link.report(Decided(what=what, detail=sentence, checkpoint=path, step=step, rows=rows))

    @contextlib.contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """What the worker is doing inside; afterwards it does again what it did before."""
        before = self.link.snapshot.progress.phase
        self.publish(phase=phase)
        try:
            yield
        finally:
            self.publish(phase=before)

    def checkpoint_now(self, *, last: bool = False) -> CheckpointNote:
        """Writes a checkpoint and publishes it. Raises what the program's `save` raises."""
        program = self._loaded
        assert program is not None, "there is nothing yet that could be saved"
        with self.phase(Phase.SAVING):
            note = program.save(last=last)
        self.publish(checkpoint=note)
        return note

    def leave(self, reason: str) -> None:
        """Saves and leaves without an order. Nobody decides then what a failed save means, so it leaves all the same, and the
        newest checkpoint holds. Raises `Leave`.
        """
        raise Leave(reason, self.last_checkpoint())

    def last_checkpoint(self) -> CheckpointNote | None:
        """The newest checkpoint, of the state as it is where that can be saved; that it cannot ends nothing."""
        if self._loaded is not None:
            try:
                return self.checkpoint_now(last=True)
            except Exception as error:
                log.exception("Leaving without a new checkpoint")
                self.save_failed(error)
        return self.link.snapshot.checkpoint

    def save_failed(self, error: Exception) -> None:
        """Puts on record that a checkpoint that nobody ordered could not be written."""
        if isinstance(error, DamagedWhenWritten):  # the program has said that already
            return
        step = self.link.snapshot.progress.step
        self.decided(DecisionKind.CHECKPOINT_FAILED, f"No checkpoint after step {step:,}: {error}", step=step)

    # ---------------------------------------------------------------------------------------------------------------
    # Boundaries

    def boundary(self) -> None:
        """Ends one piece of work: counts it, keeps the pace, carries out what was ordered, waits while held.

        Raises `Leave` when the worker is to exit.
        """
        self.tick()
        if self._program is not None and self._duty_fraction < 1:
            self._program.finish_queued()  # or a device would compute through the gap, and the gap be too short
        now_s = monotonic_s()
        self._rest_until_s = now_s + (now_s - self._busy_since_s) * (1 / self._duty_fraction - 1)
        self._obey()
        self._busy_since_s = monotonic_s()

    def obey(self) -> None:
        """Carries out what was ordered, where nothing was finished meanwhile: it is waited for others. Raises as `boundary`."""
        self._rest_until_s = 0.0
        self._obey()
        self._busy_since_s = monotonic_s()

    def _obey(self) -> None:
        postponed, self._postponed = self._postponed, []
        for order in postponed:
            self._carry_out(order)
        while True:
            wait_s = SIGN_OF_LIFE_S if self._held else min(SIGN_OF_LIFE_S, self._rest_until_s - monotonic_s())
            try:
                order = self.link.orders.get(block=wait_s > 0, timeout=max(wait_s, 0))
            except queue.Empty:
                if wait_s <= 0:
                    return
                self.tick()
            else:
                self._carry_out(order)

    def _carry_out(self, order: AnyOrder | MustLeave | MustFail) -> None:
        match order:
            case MustLeave(reason):
                self.leave(reason)
            case MustFail(error):
                self.last_checkpoint()  # the state of this process is whole at every boundary
                raise error
            case Checkpoint():
                self._checkpoint(order)
            case LimitMicroBatch():
                self._limit_micro_batch(order)
            case LimitMemory():
                self._limit_memory(order)
            case Pace(duty_fraction=duty_fraction):
                self._pass_on(order)
                self._duty_fraction = duty_fraction
                self._rest_until_s = 0.0  # this gap was measured for the pace before
                self._done(order, f"computing {100 * duty_fraction:.0f} % of the time")
            case Pause(mode=PauseMode.HOLD):
                self._pass_on(order)
                self._hold()
                self._done(order, "holding")
            case Pause(mode=PauseMode.RELEASE):
                self._leave(order, checkpoint=True)
            case Resume():
                self._pass_on(order)
                self._resume()
                self._done(order, "continuing")
            case Stop(checkpoint=checkpoint):
                self._leave(order, checkpoint=checkpoint)

    def _pass_on(self, order: Pace | Pause | Resume) -> None:
        if self._program is not None:
            self._program.pass_on(order)

    def _hold(self) -> None:
        if not self._held:
            self._held = True
            self._held_since_s = monotonic_s()
            self._phase_before_hold = self.link.snapshot.progress.phase
            self.publish(phase=Phase.HOLDING)
            hand_back()  # nothing is computed now, and others may be short

    def _resume(self) -> None:
        if self._held:
            self._held = False
            self.held_s += monotonic_s() - self._held_since_s
            self.publish(phase=self._phase_before_hold)

    def _checkpoint(self, order: Checkpoint) -> None:
        if self._loaded is not None:
            try:
                note = self.checkpoint_now()
            except Exception as error:
                self._failed(order, error)
            else:
                self._done(order, f"checkpoint at step {note.step}", checkpoint=note)
        elif self._held:
            self.link.report(
                OrderFailed(
                    order_id=order.order_id,
                    detail="Nothing is loaded yet, so there is nothing newer than the newest checkpoint.",
                )
            )
        else:
            self._postponed.append(order)

    def _limit_micro_batch(self, order: LimitMicroBatch) -> None:
        if self._loaded is None:
            self._postponed.append(order)
        else:
            micro_tokens = self._loaded.limit_micro_batch(order)
            self._done(order, f"micro-batches of at most {micro_tokens} tokens", micro_tokens=micro_tokens)

    def _limit_memory(self, order: LimitMemory) -> None:
        if self._program is None:
            self._postponed.append(order)
        else:
            self._done(order, self._program.limit_memory(order))

    def _leave(self, order: Pause | Stop, *, checkpoint: bool) -> None:
        note = self.link.snapshot.checkpoint
        if checkpoint and self._loaded is not None:
            try:
                note = self.checkpoint_now(last=True)
            except Exception as error:
                self._failed(order, error)
                return
        self._done(order, f"left at step {self.link.snapshot.progress.step}", checkpoint=note)
        raise Leave(order.reason, note)

    def _done(
        self, order: AnyOrder, detail: str, *, checkpoint: CheckpointNote | None = None, micro_tokens: int | None = None
    ) -> None:
        log.info("Order done", order_id=order.order_id, reason=order.reason, result=detail)
        self.link.report(Done(order_id=order.order_id, detail=detail, checkpoint=checkpoint, micro_tokens=micro_tokens))

    def _failed(self, order: AnyOrder, error: Exception) -> None:
        log.error("Order failed", order_id=order.order_id, reason=order.reason, exc_info=error)
        self.link.report(OrderFailed(order_id=order.order_id, detail=f"The checkpoint could not be written: {error}"))
