"""What a guarded program owes its supervisor: orders carried out at boundaries, progress, checkpoints. In the main thread.

What `worker/session.py` is for the built-in training; the two say the same over the same messages, and share no code, since
that one speaks in msgspec's types. What trains is `Program`: the session asks it to save, to limit itself, and where it is. A
pause blocks in `boundary`; leaving raises `Leave` out of it.

Orders are carried out in three places. At a *boundary* the state is whole, and every order is. Between *parts* of a step it is
not: what needs a whole state waits for the next boundary. While data is *waited* for, orders do not wait.

Of several ranks (`ranks.py`) each comes to the same boundaries. Rank 0 has a session, the others follow it (`Following`), and
what makes a process wait, or needs a whole state, is carried out at boundaries only.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, Callable, Protocol

from memsup import messages
from memsup.about import LEFT_AS_TOLD, About
from memsup.cadence import Experience, is_due
from memsup.link import Link, Lost
from memsup.memory import finish_queued, give_back
from memsup.ranks import RankLink, Ranks
from memsup.store import Checkpoint, CheckpointError

SIGN_OF_LIFE_S = 1.0
LOSS_EVERY_S = 0.5
"""How often the value of a loss is looked at, which on a GPU waits for it to be computed."""
URGE = signal.SIGRTMIN + 5
"""The signal by which the link's thread interrupts the main thread where that waits for data."""


class Leave(SystemExit):
    """Unwinds the program: it is to exit as it was told, not because anything is wrong. No `except Exception` stops it."""


class CannotLimitError(Exception):
    """A limit cannot be kept. The text is a plain sentence."""


class Program(Protocol):
    """What a session asks of whatever trains: in the main thread, but for `memory`."""

    def save(self) -> Checkpoint:
        """Writes a checkpoint, or gives back the newest where nothing was computed since. Raises what a save raises."""
        ...

    def place(self) -> messages.Message:
        """The fields of progress that are known at a boundary: step, total_steps, epoch. It is asked at each, so be quick."""
        ...

    def memory(self) -> messages.Message:
        """What is held now, as `memory.read_memory` says it; quick, and called from the link's thread."""
        ...

    def limit(self, order: messages.Message) -> int:
        """Carries out an order of `messages.LIMITS`; returns what is in force from now on: the most rows × padded length of a
        micro-batch, or a device's bytes. Raises `CannotLimitError`.
        """
        ...


class Session:
    """One life of a guarded program. Belongs to the main thread."""

    follows = False
    """Whether another process decides, and this one does as it says."""

    def __init__(self, link: Link | RankLink, about: About, every_s: float | None, ranks: Ranks | None = None) -> None:
        """`every_s` is the seconds between checkpoints. None means that their cost decides. `ranks` are the others, if any."""
        self.link, self.about, self.ranks = link, about, ranks or Ranks()
        self.every_s = every_s
        self.leaving: Leave | None = None
        """What the program was told to leave by. It is None where it was not."""
        self.trained_s = 0.0
        """Time in which the run was computing, in all its lives."""
        self._program: Program | None = None
        self._save_part: Callable[[str], None] | None = None
        self._save_s: float | None = None
        self._held = False
        self._duty_fraction = 1.0
        self._busy_since_s = self._saved_s = self._measured_s = time.monotonic()
        self._left_training_s = self._measured_s
        self._measured_step = 0
        self._loss_s = -LOSS_EVERY_S
        self._postponed: list[Any] = []
        """What needs a whole state, and waits for one."""
        self._waits = self._waits_whole = False
        """Whether the main thread waits for data, so that orders are carried out in the signal's handler; and whether the state
        is whole then."""
        self._handler: Any = None

    def begin(self, program: Program, save_part: Callable[[str], None] | None = None) -> None:
        """Has orders go to `program` from now on. `save_part` writes what only this rank knows into the checkpoint that rank 0
        writes into a folder. None means that it is never one of several.
        """
        self._program, self.link.read_memory = program, program.memory
        self._save_part = save_part
        self._saved_s = time.monotonic()
        self._measure_anew(program.place().get("step", 0))

    # -- telling ------------------------------------------------------------------------------------------------------

    def publish(self, **progress: Any) -> None:
        """What heartbeats say from now on; what is not named stays."""
        phase, before = progress.get("phase"), self.link.progress["phase"]
        if phase is not None and phase != before:
            now_s = time.monotonic()
            if before == "training":
                self._left_training_s = now_s
            elif phase == "training":
                self._measured_s += now_s - self._left_training_s
        self.link.progress = {**self.link.progress, **progress}

    def show_loss(self, *losses: Any) -> None:
        """Tells the sum of these from now on, each a number or a tensor of one; looked at twice a second. What is none is not
        told.
        """
        now_s = time.monotonic()
        if losses and now_s - self._loss_s >= LOSS_EVERY_S:
            self._loss_s = now_s
            with contextlib.suppress(TypeError, ValueError, RuntimeError):  # what is shown must not end what is shown
                self.publish(loss=float(sum(losses)))

    def describe(self, **changes: Any) -> None:
        """Tells what is so of the program, where that is something else than before: fields of `About`."""
        about = self.about._replace(**changes)
        if about != self.about:
            self.about = about
            self.link.report(messages.described(about))

    def batch(self, effective: int, micro_tokens: int, **known: int | None) -> None:
        """How steps are computed from now on: see `messages.batch`."""
        self.link.batch = messages.batch(effective, micro_tokens, **known)

    def tick(self) -> None:
        """Tells that something was finished, so the main thread lives. It is cheap and carries out no order."""
        self.publish(ticks=self.link.progress["ticks"] + 1)

    @contextlib.contextmanager
    def phase(self, phase: str) -> Iterator[None]:
        """What the program is doing inside; afterwards it does again what it did before."""
        before = self.link.progress["phase"]
        self.publish(phase=phase)
        try:
            yield
        finally:
            self.publish(phase=before)

    def decided(self, what: str, detail: str, checkpoint: str | None = None, step: int | None = None) -> None:
        """Puts on record what was decided without an order: see `DecisionKind` in `shared/messages.py`."""
        self.link.report(messages.decided(what, detail, checkpoint, step))

    def out_of_memory(self, where: str, device: str, before_tokens: int, after_tokens: int, detail: str) -> None:
        """Puts on record that memory ran out in a step, which is redone with `after_tokens`: see `OutOfMemory` there."""
        step = self.link.progress["step"]
        self.link.report(messages.out_of_memory(where, device, step, before_tokens, after_tokens, detail))

    def found(self, checkpoint: Checkpoint, *, verified: bool = True) -> messages.Note:
        """Has heartbeats tell of a checkpoint from now on."""
        self.link.checkpoint = messages.note(
            checkpoint.path,
            checkpoint.step,
            checkpoint.created_unix_s,
            verified=verified,
            save_s=checkpoint.save_s,
            size_bytes=checkpoint.size_bytes,
        )
        return self.link.checkpoint

    def _publish_pace(self, step: int, total: int | None) -> None:
        """The time that is left, by the steps of the last half minute or so; only the time of training counts."""
        if self.link.progress["phase"] != "training":
            return
        now_s = time.monotonic()
        took_s, steps = now_s - self._measured_s, step - self._measured_step
        if steps > 0 and took_s >= SIGN_OF_LIFE_S and total is not None:
            self.publish(eta_s=max(0.0, (total - step) * took_s / steps))
        if took_s > 30.0:
            self._measure_anew(step)

    def _measure_anew(self, step: int) -> None:
        self._measured_s = self._left_training_s = time.monotonic()
        self._measured_step = step

    # -- boundaries ---------------------------------------------------------------------------------------------------

    def boundary(self) -> None:
        """Ends one piece of work after which the state is whole: counts it, keeps the pace, saves where that is due, carries
        out what was ordered, waits while held. Raises `Leave` when the program is to exit, and `RankGone`.
        """
        if self.leaving is not None:  # the program has caught it, and goes on all the same
            raise self.leaving
        assert self._program is not None, "a session has a program before its first boundary"
        self.ranks.look()
        self.publish(ticks=self.link.progress["ticks"] + 1, **self._program.place())
        self._publish_pace(self.link.progress["step"], self.link.progress["total_steps"])
        rest_until_s = self._rest_until_s()
        if self.about.saves and self._is_save_due():
            self.save_if_possible()
        self._obey(rest_until_s, is_whole=True)
        self.meet()
        self._busy_since_s = time.monotonic()

    def meet(self) -> None:
        """All ranks are here, or will be: what was asked of the others they do now, and then they go on."""
        self.ranks.tell("go", step=self.link.progress["step"])

    def end(self) -> None:
        """This process ends as it should."""

    def own_boundary(self) -> None:
        """As `boundary`, where the state of this process is whole, and other ranks may be somewhere else."""
        if self.ranks.is_alone:
            self.boundary()
        else:
            self.part()

    def part(self) -> None:
        """Ends a piece of work after which the state is not whole, as between the parts of a step or two batches of an
        evaluation: orders to hold, to compute more slowly or less at once are carried out, others wait for the next boundary.
        """
        self.tick()
        if self.leaving is None:
            self._obey(self._rest_until_s(), is_whole=False)
        self._busy_since_s = time.monotonic()

    @contextlib.contextmanager
    def waiting(self, *, is_whole: bool = False) -> Iterator[None]:
        """What is inside waits for data: orders are carried out as they come. `is_whole`: the state is whole until the data is
        there, so that also those are carried out that save; then it may raise `Leave`.
        """
        if not self._can_be_urged():
            yield
            return
        self._waits_whole, self._waits = is_whole and self.ranks.is_alone, True
        try:
            if not self.link.orders.empty():
                self._urged()
            yield
        finally:
            self._waits = False
            self._busy_since_s = time.monotonic()

    def _can_be_urged(self) -> bool:
        """Whether the signal can interrupt this thread, the main one: it is taken where nobody else has it."""
        main = threading.main_thread().ident
        if threading.get_ident() != main or main is None:
            return False
        if self._handler is not None:
            return True
        if signal.getsignal(URGE) is not signal.SIG_DFL:
            return False
        self._handler = lambda _number, _frame: self._urged()
        signal.signal(URGE, self._handler)

        def urge() -> None:
            if self._waits and self.link.is_ours and signal.getsignal(URGE) is self._handler:
                signal.pthread_kill(main, URGE)

        self.link.urge = urge
        return True

    def _urged(self) -> None:
        if self._waits and self.leaving is None:
            self._waits = False  # what is carried out takes no second one in between
            try:
                self._obey(0.0, is_whole=self._waits_whole)
            finally:
                self._waits = True

    def _rest_until_s(self) -> float:
        if self._duty_fraction < 1:
            finish_queued()  # or a device would compute through the gap, and the gap be too short
        now_s = time.monotonic()
        busy_s = now_s - self._busy_since_s
        self.trained_s += busy_s
        return now_s + busy_s * (1 / self._duty_fraction - 1)

    def _is_save_due(self) -> bool:
        experience = Experience(save_s=self._save_s, trained_s=self.trained_s, deaths=self.link.deaths)
        return is_due(time.monotonic(), self._saved_s, experience, self.every_s)

    def save_if_possible(self) -> None:
        """Writes a checkpoint that nobody waits for: where it fails that is told, and the training goes on."""
        step = self.link.progress["step"]
        try:
            self.save_now()
        except Exception as error:
            self._saved_s = time.monotonic()
            self.decided("checkpoint_failed", f"No checkpoint after step {step:,}: {error}", step=step)

    def save_now(self) -> messages.Note:
        """Writes a checkpoint of the program as it is, or gives back the newest where that holds all. Raises what a save
        raises.
        """
        if self._program is None or not self.about.saves:
            raise CheckpointError("The program has given memsup nothing to save: memsup.guard(save=…, load=…) or its model.")
        try:
            with self.phase("saving"):
                checkpoint = self._program.save()
        finally:
            self._saved_s = time.monotonic()
        self._save_s = checkpoint.save_s or self._save_s
        return self.found(checkpoint)

    def _obey(self, rest_until_s: float, *, is_whole: bool) -> None:
        postponed, self._postponed = self._postponed, []
        for order in postponed:
            self._carry_out(order, is_whole=is_whole)
        while not self._gives_way():
            self.ranks.look()
            wait_s = SIGN_OF_LIFE_S if self._held else min(SIGN_OF_LIFE_S, rest_until_s - time.monotonic())
            try:
                order = self.link.orders.get(block=wait_s > 0, timeout=max(wait_s, 0))
            except queue.Empty:
                if wait_s <= 0:
                    return
                self.tick()
            else:
                self._carry_out(order, is_whole=is_whole)
        self._hold(False)

    def _gives_way(self) -> bool:
        """Whether the program is to get on to its next boundary, held or not: what it leaves by waits for that."""
        return any(isinstance(order, Lost) or order["kind"] in {"pause", "stop"} for order in self._postponed)

    def _carry_out(self, order: Any, *, is_whole: bool) -> None:
        if isinstance(order, Lost):
            if is_whole:
                self._leave(None, order.reason, save=True)
            self._postponed.append(order)
            return
        kind, order_id = order["kind"], order["order_id"]
        if kind in {"pause", "resume"} and not is_whole and not self.ranks.is_alone:
            self._postponed.append(order)  # the others are not to wait for this one in a collective
        elif kind == "pace":
            self._duty_fraction = float(order["duty_fraction"])
            self._done(order_id, f"computing {100 * self._duty_fraction:.0f} % of the time")
        elif kind == "pause" and order["mode"] == "hold":
            self._hold(True)
            self._done(order_id, "holding")
        elif kind == "resume":
            self._hold(False)
            self._done(order_id, "continuing")
        elif kind in messages.LIMITS:
            self._limit(order)
        elif kind == "checkpoint" and self._held and not is_whole:
            newest = self.link.checkpoint
            has = f"the newest checkpoint is that of step {newest['step']:,}" if newest else "there is no checkpoint yet"
            detail = f"It holds within a step, where its state is not whole, and {has}."
            self.link.report(messages.order_failed(order_id, detail))
        elif not is_whole:
            self._postponed.append(order)
        elif kind == "checkpoint":
            try:
                note = self.save_now()
            except Exception as error:
                self.link.report(messages.order_failed(order_id, str(error)))
            else:
                self._done(order_id, f"checkpoint at step {note['step']}", note)
        else:  # a pause with release, or a stop
            self._leave(order_id, order["reason"], save=order.get("checkpoint", True), must=kind == "pause")

    def _limit(self, order: messages.Message) -> None:
        try:
            if self._program is None or not self.about.cuts:
                raise CannotLimitError("memsup does not cut what this program computes.")
            limit = self._program.limit(order)
            self.ranks.tell("limit", order=order)
        except Exception as error:  # a device's driver may refuse it as well, and the program is to train on
            self.link.report(messages.order_failed(order["order_id"], str(error) or type(error).__name__))
        else:
            is_of_tokens = order["kind"] == "limit_micro_batch"
            detail = f"micro-batches of at most {limit} tokens" if is_of_tokens else f"at most {limit >> 20} MiB of the GPU"
            self.link.report(
                messages.done(order["order_id"], detail, micro_tokens=limit if is_of_tokens else None),
            )

    def _hold(self, held: bool) -> None:
        if held is self._held:
            return
        self._held = held
        if held:
            self._held_since_s, self._phase_before = time.monotonic(), self.link.progress["phase"]
            self.publish(phase="holding")
            self.ranks.tell("hold")
            give_back()  # nothing is computed now, and others may be short
        else:
            self._saved_s += time.monotonic() - self._held_since_s
            self.publish(phase=self._phase_before)

    def _done(self, order_id: int, detail: str, note: messages.Note | None = None) -> None:
        self.link.report(messages.done(order_id, detail, note))

    def _leave(self, order_id: int | None, reason: str, *, save: bool, must: bool = False) -> None:
        """Saves and raises `Leave`. A program that cannot save what it has stays where it was ordered to leave; one that has
        nothing to save leaves all the same, unless it `must` save.
        """
        note = self.link.checkpoint
        try:
            if save and (must or self.about.saves):
                note = self.save_now()
        except Exception as error:
            if order_id is not None:
                self.link.report(messages.order_failed(order_id, str(error)))
                return
        if order_id is not None:
            self._done(order_id, f"left at step {self.link.progress['step']}", note)
        self.link.report(messages.leaving(reason, note))
        self.link.flush()
        self.ranks.tell("leave")
        self.leaving = Leave(LEFT_AS_TOLD)
        raise self.leaving


class Following(Session):
    """One life of a rank beside rank 0. Where its ranks meet it does what that says."""

    follows = True

    def __init__(self, link: RankLink, about: About) -> None:
        super().__init__(link, about, None)
        self._rank_link = link

    def boundary(self) -> None:
        """Ends one piece of work after which the state is whole, and meets the others. Raises `Leave`, and `RankGone`."""
        if self.leaving is not None:
            raise self.leaving
        assert self._program is not None, "a session has a program before its first boundary"
        self.publish(ticks=self.link.progress["ticks"] + 1, **self._program.place())
        self.meet()

    def meet(self) -> None:
        assert self._program is not None, "a session has a program before its ranks meet"
        if self._rank_link.is_over and self._rank_link.words.empty():
            return
        while (word := self._rank_link.next(self.tick))["what"] not in {"go", "over", "alone"}:
            if word["what"] == "save":
                self._write_part(word["folder"])
            elif word["what"] == "hold":
                give_back()
            elif word["what"] == "limit":
                with contextlib.suppress(Exception):  # as rank 0 is told of its own
                    self._program.limit(word["order"])
            elif word["what"] == "leave":
                self.leaving = Leave(LEFT_AS_TOLD)
                raise self.leaving

    def _write_part(self, folder: str) -> None:
        assert self._save_part is not None, "whoever follows says how it writes its part"
        why = None
        try:
            self._save_part(folder)
        except Exception as error:
            why = f"rank {self._rank_link.group.rank} could not write its part: {error}"
        self._rank_link.written(folder, why)

    def end(self) -> None:
        self._rank_link.ends()

    def own_boundary(self) -> None:
        self.tick()

    def part(self) -> None:
        self.tick()

    @contextlib.contextmanager
    def waiting(self, *, is_whole: bool = False) -> Iterator[None]:  # noqa: ARG002
        yield
