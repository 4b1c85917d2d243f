"""Orders on their way: who asked for them and why, who is owed an answer, and which answers are overdue. Pure; sends nothing.

No answer in time means "unresponsive", never "done".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from memsup.shared.messages import AnyOrder, Checkpoint, LimitMemory, LimitMicroBatch, Pace, Pause, PauseMode, Resume
from memsup.supervisor.decide.events import OrderKind
from memsup.supervisor.decide.run.actions import Why
from memsup.supervisor.words import percent, size

ACCEPT_WITHIN_S = 10.0
"""The worker has this many seconds to accept an order: its link thread answers within milliseconds, but importing torch holds
the interpreter for seconds."""
DONE_WITHIN_S = 120.0
"""An accepted order has this many seconds to be done, counted anew with all progress: a large checkpoint takes its time."""

OrderMaker = Callable[[int, str], AnyOrder]
"""An order maker makes an order of the number and the reason that it is given. The types of orders are such makers."""


@dataclass
class Pending:
    """An order that was sent and is not answered yet."""

    order: AnyOrder
    why: Why
    due_s: float
    """The order is overdue from this time on, which moves whenever the worker shows progress."""
    micro_tokens: int | None
    """The size of micro-batches when the order was sent. It is None where that was not known."""
    requests: tuple[int, ...]
    """These clients of the control socket (tokens of `Lifecycle`) are owed an answer."""
    accepted: bool = False


@dataclass
class OrderBook:
    """The order book of one worker numbers its orders and remembers those without an answer."""

    done_within_s: float = DONE_WITHIN_S
    """An accepted order has this many seconds to be done."""
    _next_id: int = 1
    _pending: dict[int, Pending] = field(default_factory=dict)

    def issue(
        self,
        make: OrderMaker,
        why: Why,
        now_s: float,
        micro_tokens: int | None = None,
        requests: tuple[int, ...] = (),
    ) -> AnyOrder:
        """The order, numbered and remembered; the caller sends it. The fields of `Pending` say what the rest is."""
        order = make(self._next_id, why.reason)
        self._next_id += 1
        self._pending[order.order_id] = Pending(order, why, now_s + ACCEPT_WITHIN_S, micro_tokens, requests)
        return order

    def accepted(self, order_id: int, now_s: float) -> None:
        """The worker has the order and will carry it out at its next boundary."""
        pending = self._pending.get(order_id)
        if pending:
            pending.accepted, pending.due_s = True, now_s + self.done_within_s

    def progressed(self, now_s: float) -> None:
        """The worker finished something, so accepted orders may take longer."""
        for pending in self._pending.values():
            if pending.accepted:
                pending.due_s = now_s + self.done_within_s

    def answered(self, order_id: int) -> Pending | None:
        """The order that is done or failed, which is forgotten. Returns None where nobody waits for this answer, since it is
        late, repeated or invented.
        """
        return self._pending.pop(order_id, None)

    def overdue(self, now_s: float) -> list[Pending]:
        """The orders without an answer in time, which are forgotten."""
        late = [p for p in self._pending.values() if now_s >= p.due_s]
        for pending in late:
            del self._pending[pending.order.order_id]
        return late

    def postpone(self, by_s: float) -> None:
        """All answers may come so much later."""
        for pending in self._pending.values():
            pending.due_s += by_s

    def drop_all(self) -> list[Pending]:
        """All orders that the worker, which is gone, will not answer any more."""
        dropped = list(self._pending.values())
        self._pending.clear()
        return dropped

    def forget(self, kind: type[AnyOrder]) -> None:
        """Nobody waits any more for the answer to an order of this kind."""
        self._pending = {number: p for number, p in self._pending.items() if not isinstance(p.order, kind)}

    def in_flight(self, kind: type[AnyOrder] | None = None) -> bool:
        """Whether an order of this kind is without an answer. None means an order of any kind."""
        return any(kind is None or isinstance(p.order, kind) for p in self._pending.values())


def kind_of(order: AnyOrder) -> OrderKind:
    """What the worker is ordered to do, for programs."""
    match order:
        case LimitMicroBatch(halve=True):
            return OrderKind.HALVE
        case LimitMicroBatch(micro_tokens=int()):
            return OrderKind.LIMIT_TOKENS
        case LimitMicroBatch(limit_bytes=int()):
            return OrderKind.LIMIT_RAM
        case LimitMicroBatch(may_grow=may_grow):
            return OrderKind.GROW if may_grow else OrderKind.STOP_GROWING
        case LimitMemory():
            return OrderKind.LIMIT_MEMORY
        case Pace():
            return OrderKind.PACE
        case Pause(mode=PauseMode.HOLD):
            return OrderKind.HOLD
        case Pause():
            return OrderKind.RELEASE
        case Checkpoint():
            return OrderKind.CHECKPOINT
        case Resume():
            return OrderKind.RESUME
        case _:
            return OrderKind.STOP


def name_of(order: AnyOrder) -> str:
    """What the worker is ordered to do, for people."""
    match order:
        case LimitMicroBatch(halve=True, rank=rank):
            return "halve the micro-batch" + _of(rank)
        case LimitMicroBatch(micro_tokens=int(most)):
            return f"micro-batches of at most {most:,} tokens"
        case LimitMicroBatch(limit_bytes=int(limit_bytes)):
            return f"plan for {size(limit_bytes)} of memory"
        case LimitMicroBatch(may_grow=may_grow):
            return "let the micro-batch grow" if may_grow else "stop growing the micro-batch"
        case LimitMemory(device_bytes=device_bytes, rank=rank):
            return f"take at most {size(device_bytes)} of the GPU" + _of(rank)
        case Pace(duty_fraction=duty):
            return f"compute {percent(duty)} of the time"
        case Pause(mode=mode):
            return f"pause ({mode})"
        case _:
            return str(kind_of(order))


def _of(rank: int | None) -> str:
    """Which of several ranks is meant. Empty: all of them, or there is one."""
    return "" if rank is None else f" of rank {rank}"
