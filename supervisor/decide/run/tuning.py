"""How much at once and how fast the worker computes: what it was told last, and the orders that are due now. Pure.

Covers the micro-batch, the pace and the GPU's memory, which are changed while training goes on. Pauses, checkpoints and leaving
are `one_life.py`'s; what should be so is the ladder's to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from memsup.shared.messages import LimitMemory, LimitMicroBatch, Pace
from memsup.supervisor.decide.events import By
from memsup.supervisor.decide.ladder import HoldReason, Stance
from memsup.supervisor.decide.run.actions import Why
from memsup.supervisor.decide.run.orders import OrderBook, OrderMaker

PACE_STEP = 0.02
"""Changes of the duty cycle that are smaller are not worth an order."""


@dataclass
class Tuning:
    """What one life of the worker has been told; a new process has been told nothing."""

    most_micro_tokens: int | None = None
    """Micro-batches stay below this size however calm memory is (`after_power_loss.py`). It is None where there is no such
    bound."""
    cuts: bool = True
    """Whether the worker cuts what it computes at once, and limits its memory: an attached program is only paced."""
    told_limit_bytes: int | None = None
    """What it was told that its tree may hold of the host's memory. It is None where it was told of no limit."""
    _halve: bool = False
    """The ladder asked for a smaller micro-batch, and no order has gone out yet."""
    _halve_ranks: list[int] = field(default_factory=list)
    """The same of single ranks, each on a card of its own."""
    _told_may_grow: bool = True
    _told_most_tokens: int | None = None
    _told_duty: float = 1.0
    _told_vram_bytes: dict[int | None, int] = field(default_factory=dict)
    """By rank; None is the only one."""

    def ask(self, stance: Stance) -> None:
        """Takes note of a stance that asks for smaller micro-batches: it says so once, and the order may have to wait."""
        self._halve = self._halve or (stance.shrink and stance.shrink_ranks is None)
        self._halve_ranks += [rank for rank in stance.shrink_ranks or () if rank not in self._halve_ranks]

    def due(self, stance: Stance, orders: OrderBook) -> Iterator[tuple[OrderMaker, Why]]:
        """What has to be ordered for `stance` to be so. One order of each kind is on its way at a time, and what this function
        has yielded counts as told.
        """
        if self.cuts and not orders.in_flight(LimitMicroBatch):
            yield from self._micro_batch(stance)
        duty = stance.duty_fraction
        if abs(duty - self._told_duty) >= PACE_STEP and not orders.in_flight(Pace):
            self._told_duty = duty
            yield partial(Pace, duty_fraction=duty), _why(stance, stance.reason, HoldReason.HEAT)
        if self.cuts and not orders.in_flight(LimitMemory):
            yield from self._vram(stance)

    def _vram(self, stance: Stance) -> Iterator[tuple[OrderMaker, Why]]:
        only = [] if stance.vram_limit_bytes is None else [(None, stance.vram_limit_bytes)]
        for rank, vram_bytes in (*only, *stance.vram_limits):
            if vram_bytes != self._told_vram_bytes.get(rank):
                self._told_vram_bytes[rank] = vram_bytes
                why = _why(stance, "what others leave it", HoldReason.MEMORY)
                yield partial(LimitMemory, device_bytes=vram_bytes, rank=rank), why
                return

    def _micro_batch(self, stance: Stance) -> Iterator[tuple[OrderMaker, Why]]:
        may_grow, limit_bytes = stance.may_grow, None
        if stance.limit_bytes is not None and stance.limit_bytes != self.told_limit_bytes:
            limit_bytes = stance.limit_bytes
        is_less = limit_bytes is not None and limit_bytes < (self.told_limit_bytes or 0)
        halve = self._halve and not is_less  # it plans for what there is, which is better than a half
        most = self.most_micro_tokens if may_grow and not halve else None  # else it would let a smaller one grow
        gentler = most is not None and most != self._told_most_tokens
        if self._halve_ranks and not halve and not is_less:
            rank, *self._halve_ranks = self._halve_ranks
            why = _why(stance, stance.reason or "its card is full", HoldReason.MEMORY)
            yield partial(LimitMicroBatch, halve=True, may_grow=False, rank=rank), why
            return
        if halve or is_less:
            self._halve_ranks.clear()  # they are among those that are told
        if halve or gentler or limit_bytes is not None or may_grow != self._told_may_grow:
            calm = "others take more of the memory" if is_less else "memory is calm again"
            why = _why(stance, stance.reason or calm, HoldReason.MEMORY)
            if gentler and not stance.reason:
                why = Why("gentler since the machine died", By.SUPERVISOR)
            self._halve, self._told_may_grow, self._told_most_tokens = False, may_grow, most or self._told_most_tokens
            self.told_limit_bytes = limit_bytes or self.told_limit_bytes
            yield (
                partial(LimitMicroBatch, micro_tokens=most, halve=halve, may_grow=may_grow, limit_bytes=limit_bytes),
                why,
            )


def _why(stance: Stance, reason: str, of: HoldReason) -> Why:
    """Why the ladder gives an order. It answers the pressure that the order is a means against, where that is felt."""
    return Why(reason, By.LADDER, tuple(pressure for pressure in stance.pressures if pressure is of))
