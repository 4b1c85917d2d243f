"""How much at once and how fast the worker computes: what it was told last, and the orders that are due now. Pure.

Covers the micro-batch, the pace and the GPU's memory, which are changed while training goes on. Pauses, checkpoints and leaving
are `lifecycle.py`'s; what should be so is the ladder's to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from memsup.shared.messages import LimitMemory, LimitMicroBatch, Pace
from memsup.supervisor.decide.ladder import Stance
from memsup.supervisor.decide.run.orders import OrderBook, OrderMaker

PACE_STEP = 0.02
"""Smaller changes of the duty cycle are not worth an order."""


@dataclass
class Tuning:
    """Of one life of the worker: a new process has been told nothing."""

    most_micro_tokens: int | None = None
    """However calm memory is (`after_power_loss.py`)."""
    _halve: bool = False
    """The ladder asked, and no order has gone out yet."""
    _told_may_grow: bool = True
    _told_most_tokens: int | None = None
    _told_duty: float = 1.0
    _told_vram_bytes: int | None = None

    def ask(self, stance: Stance) -> None:
        """A stance says once that micro-batches are to be halved; that stays so until the order can be sent."""
        self._halve = self._halve or stance.shrink

    def due(self, stance: Stance, orders: OrderBook) -> Iterator[OrderMaker]:
        """What has to be ordered for `stance` to be so. Of each kind one is on its way; what is given out counts as told."""
        if not orders.in_flight(LimitMicroBatch):
            yield from self._micro_batch(stance)
        duty, vram_bytes = stance.duty_fraction, stance.vram_limit_bytes
        if abs(duty - self._told_duty) >= PACE_STEP and not orders.in_flight(Pace):
            self._told_duty = duty
            yield lambda n: Pace(order_id=n, reason=stance.reason, duty_fraction=duty)
        if vram_bytes is not None and vram_bytes != self._told_vram_bytes and not orders.in_flight(LimitMemory):
            self._told_vram_bytes = vram_bytes
            yield lambda n: LimitMemory(order_id=n, reason="what others leave it", device_bytes=vram_bytes)

    def _micro_batch(self, stance: Stance) -> Iterator[OrderMaker]:
        halve, may_grow = self._halve, stance.may_grow
        most = self.most_micro_tokens if may_grow and not halve else None  # else it would let a smaller one grow
        gentler = most is not None and most != self._told_most_tokens
        if halve or gentler or may_grow != self._told_may_grow:
            why = stance.reason or ("gentler since the machine died" if gentler else "memory is calm again")
            self._halve, self._told_may_grow, self._told_most_tokens = False, may_grow, most or self._told_most_tokens
            yield lambda n: LimitMicroBatch(order_id=n, reason=why, micro_tokens=most, halve=halve, may_grow=may_grow)
