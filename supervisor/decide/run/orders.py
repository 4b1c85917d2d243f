"""Orders on their way: who is owed an answer, and which answers are overdue. Pure; sends nothing.

No answer in time means "unresponsive", never "done" (DESIGN.md, Messages).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from memsup.shared.messages import AnyOrder, LimitMemory, LimitMicroBatch, Pace, Pause
from memsup.supervisor.words import size

ACCEPT_WITHIN_S = 10.0
"""The worker's link thread answers within milliseconds, but importing torch holds the interpreter for seconds."""
DONE_WITHIN_S = 120.0
"""Progress made meanwhile extends this: a large checkpoint takes its time."""

OrderMaker = Callable[[int], AnyOrder]
"""Makes an order of the number that it is given."""


@dataclass
class Pending:
    order: AnyOrder
    sent_s: float
    due_s: float
    """Overdue from then on; moved whenever the worker shows progress."""
    accepted: bool = False
    requests: list[int] = field(default_factory=list)
    """Whom of the control socket to tell (tokens of `Lifecycle`); empty for orders of the ladder."""


@dataclass
class OrderBook:
    _next_id: int = 1
    _pending: dict[int, Pending] = field(default_factory=dict)

    def issue(self, make: OrderMaker, now_s: float, requests: list[int] | None = None) -> AnyOrder:
        """Numbers the order and remembers it; the caller sends it."""
        order = make(self._next_id)
        self._next_id += 1
        self._pending[order.order_id] = Pending(order, now_s, now_s + ACCEPT_WITHIN_S, requests=requests or [])
        return order

    def accepted(self, order_id: int, now_s: float) -> None:
        pending = self._pending.get(order_id)
        if pending:
            pending.accepted, pending.due_s = True, now_s + DONE_WITHIN_S

    def progressed(self, now_s: float) -> None:
        """The worker finished something: accepted orders may take longer."""
        for pending in self._pending.values():
            if pending.accepted:
                pending.due_s = now_s + DONE_WITHIN_S

    def settle(self, order_id: int) -> Pending | None:
        """Done or failed: forgets the order. None for an answer nobody waits for (late, repeated or invented)."""
        return self._pending.pop(order_id, None)

    def overdue(self, now_s: float) -> list[Pending]:
        """Forgets and returns the orders without an answer in time."""
        late = [p for p in self._pending.values() if now_s >= p.due_s]
        for pending in late:
            del self._pending[pending.order.order_id]
        return late

    def drop_all(self) -> list[Pending]:
        """The worker is gone: nobody will answer these."""
        dropped = list(self._pending.values())
        self._pending.clear()
        return dropped

    def in_flight(self, kind: type[AnyOrder] | None = None) -> bool:
        return any(kind is None or isinstance(p.order, kind) for p in self._pending.values())


def name_of(order: AnyOrder) -> str:
    """For the ledger and for people."""
    match order:
        case LimitMicroBatch(halve=True):
            return "halve the micro-batch"
        case LimitMicroBatch(micro_tokens=int(most)):
            return f"micro-batches of at most {most:,} tokens"
        case LimitMicroBatch(may_grow=may_grow):
            return "let the micro-batch grow" if may_grow else "stop growing the micro-batch"
        case LimitMemory(device_bytes=device_bytes):
            return f"take at most {size(device_bytes)} of the GPU"
        case Pace(duty_fraction=duty):
            return f"compute {duty:.0%} of the time"
        case Pause(mode=mode):
            return f"pause ({mode})"
        case _:
            return type(order).__name__.lower()
