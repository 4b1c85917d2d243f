"""What a guarded program owes its supervisor: orders carried out at boundaries, progress, checkpoints. In the main thread.

What `worker/session.py` is for the built-in training; the two say the same over the same messages, and share no code, since
that one speaks in msgspec's types and gives torch's memory back. A pause blocks in `boundary`; leaving raises `Leave` out of
it.
"""

from __future__ import annotations

import queue
import time
from typing import Any, Callable

from memsup import messages
from memsup.link import Link, Lost
from memsup.store import Checkpoint, CheckpointError

LEFT_AS_TOLD = 75
"""The exit code of a program that has left because it was told to, and not because it is done (EX_TEMPFAIL: to be gone on)."""
SIGN_OF_LIFE_S = 1.0
FIRST_SAVE_S = 60.0
MOST_AT_RISK_S = 600.0
OVERHEAD_FRACTION = 0.01
"""Saves take this part of the time; no more than `MOST_AT_RISK_S` of work are at risk whatever they cost."""


class Leave(SystemExit):
    """Unwinds the program: it is to exit as it was told, not because anything is wrong. No `except Exception` stops it."""


class Session:
    """One life of a guarded program. Belongs to the main thread."""

    def __init__(self, link: Link, save: Callable[[], Checkpoint] | None, every_s: float | None) -> None:
        """`save` writes a checkpoint, or gives back the newest where nothing was computed since; None where the program has
        nothing to save. `every_s` is the seconds between checkpoints. None means that their cost decides.
        """
        self.link = link
        self._save, self._every_s = save, every_s
        self._save_s: float | None = None
        self._held = False
        self._duty_fraction = 1.0
        self._busy_since_s = self._saved_s = self._measured_s = time.monotonic()
        self._measured_step = 0
        self.leaving: Leave | None = None
        """What the program was told to leave by. It is None where it was not."""

    # -- telling ------------------------------------------------------------------------------------------------------

    def publish(self, **progress: Any) -> None:
        """What heartbeats say from now on; what is not named stays."""
        self.link.progress = {**self.link.progress, **progress}

    def tick(self) -> None:
        """Tells that something was finished, so the main thread lives. It is cheap and carries out no order."""
        self.publish(ticks=self.link.progress["ticks"] + 1)

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
        """The time that is left, by the steps of the last half minute or so; pauses do not count."""
        now_s = time.monotonic()
        took_s, steps = now_s - self._measured_s, step - self._measured_step
        if steps > 0 and took_s >= SIGN_OF_LIFE_S and total is not None:
            self.publish(eta_s=max(0.0, (total - step) * took_s / steps))
        if took_s > 30.0:
            self._measure_anew(step)

    def _measure_anew(self, step: int) -> None:
        self._measured_s, self._measured_step = time.monotonic(), step

    # -- boundaries ---------------------------------------------------------------------------------------------------

    def boundary(self) -> None:
        """Ends one piece of work: counts it, keeps the pace, saves where that is due, carries out what was ordered, waits while
        held. Raises `Leave` when the program is to exit.
        """
        self.tick()
        if self.leaving is not None:  # the program has caught it, and goes on all the same
            raise self.leaving
        progress = self.link.progress
        self._publish_pace(progress["step"], progress["total_steps"])
        now_s = time.monotonic()
        rest_until_s = now_s + (now_s - self._busy_since_s) * (1 / self._duty_fraction - 1)
        if self._save is not None and now_s - self._saved_s >= self._interval_s():
            self._save_by_itself()
        self._obey(rest_until_s)
        self._busy_since_s = time.monotonic()

    def _interval_s(self) -> float:
        if self._every_s is not None:
            return self._every_s
        if self._save_s is None:
            return FIRST_SAVE_S
        return min(MOST_AT_RISK_S, self._save_s * (1 / OVERHEAD_FRACTION - 1))

    def _save_by_itself(self) -> None:
        step = self.link.progress["step"]
        try:
            self.save_now()
        except Exception as error:
            self._saved_s = time.monotonic()
            self.link.report(messages.decided("checkpoint_failed", f"No checkpoint after step {step:,}: {error}", step=step))

    def save_now(self) -> messages.Note:
        """Writes a checkpoint of the program as it is, or gives back the newest where that holds all. Raises what a save
        raises.
        """
        if self._save is None:
            raise CheckpointError("The program has given memsup nothing to save: memsup.guard(save=…, load=…) or its model.")
        before = self.link.progress["phase"]
        self.publish(phase="saving")
        began_s = time.monotonic()
        try:
            checkpoint = self._save()
        finally:
            self.publish(phase=before)
            self._saved_s = time.monotonic()
            self._measured_s += self._saved_s - began_s
        self._save_s = checkpoint.save_s or self._save_s
        return self.found(checkpoint)

    def _obey(self, rest_until_s: float) -> None:
        while True:
            wait_s = SIGN_OF_LIFE_S if self._held else min(SIGN_OF_LIFE_S, rest_until_s - time.monotonic())
            try:
                order = self.link.orders.get(block=wait_s > 0, timeout=max(wait_s, 0))
            except queue.Empty:
                if wait_s <= 0:
                    return
                self.tick()
            else:
                self._carry_out(order)

    def _carry_out(self, order: Any) -> None:
        if isinstance(order, Lost):
            self._leave(None, order.reason, save=True)
            return
        kind, order_id = order["kind"], order["order_id"]
        if kind == "pace":
            self._duty_fraction = float(order["duty_fraction"])
            self._done(order_id, f"computing {self._duty_fraction:.0%} of the time")
        elif kind == "pause" and order["mode"] == "hold":
            self._hold(True)
            self._done(order_id, "holding")
        elif kind == "resume":
            self._hold(False)
            self._done(order_id, "continuing")
        elif kind == "checkpoint":
            try:
                note = self.save_now()
            except Exception as error:
                self.link.report(messages.order_failed(order_id, str(error)))
            else:
                self._done(order_id, f"checkpoint at step {note['step']}", note)
        else:  # a pause with release, or a stop
            self._leave(order_id, order["reason"], save=order.get("checkpoint", True), must=kind == "pause")

    def _hold(self, held: bool) -> None:
        if held is self._held:
            return
        self._held = held
        if held:
            self._held_since_s, self._phase_before = time.monotonic(), self.link.progress["phase"]
            self.publish(phase="holding")
        else:
            self._measured_s += time.monotonic() - self._held_since_s
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
            if save and (must or self._save is not None):
                note = self.save_now()
        except Exception as error:
            if order_id is not None:
                self.link.report(messages.order_failed(order_id, str(error)))
                return
        if order_id is not None:
            self._done(order_id, f"left at step {self.link.progress['step']}", note)
        self.link.report(messages.leaving(reason, note))
        self.link.flush()
        self.leaving = Leave(LEFT_AS_TOLD)
        raise self.leaving
