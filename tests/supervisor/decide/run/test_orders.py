"""Orders on their way: what each is called, who is owed an answer, and when an answer is overdue."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.shared.messages import (
    AnyOrder,
    Checkpoint,
    LimitMemory,
    LimitMicroBatch,
    Pace,
    Pause,
    PauseMode,
    Resume,
    Stop,
)
from memsup.supervisor.decide.events import By, OrderKind
from memsup.supervisor.decide.ladder import HoldReason
from memsup.supervisor.decide.run.actions import Why
from memsup.supervisor.decide.run.orders import ACCEPT_WITHIN_S, DONE_WITHIN_S, OrderBook, kind_of, name_of

HEAD = (1, "why")
KINDS: dict[OrderKind, AnyOrder] = {
    OrderKind.CHECKPOINT: Checkpoint(*HEAD),
    OrderKind.HALVE: LimitMicroBatch(*HEAD, halve=True, may_grow=False),
    OrderKind.STOP_GROWING: LimitMicroBatch(*HEAD, may_grow=False),
    OrderKind.GROW: LimitMicroBatch(*HEAD),
    OrderKind.LIMIT_TOKENS: LimitMicroBatch(*HEAD, micro_tokens=512),
    OrderKind.LIMIT_RAM: LimitMicroBatch(*HEAD, limit_bytes=1 << 30),
    OrderKind.LIMIT_MEMORY: LimitMemory(*HEAD, device_bytes=1 << 30),
    OrderKind.PACE: Pace(*HEAD, duty_fraction=0.7),
    OrderKind.HOLD: Pause(*HEAD, mode=PauseMode.HOLD),
    OrderKind.RELEASE: Pause(*HEAD, mode=PauseMode.RELEASE),
    OrderKind.RESUME: Resume(*HEAD),
    OrderKind.STOP: Stop(*HEAD, checkpoint=True),
}
WHY = Why("memory is short", By.LADDER, (HoldReason.MEMORY,))


@pytest.mark.parametrize("kind", OrderKind)
def test_each_kind_of_order_is_told_apart(kind: OrderKind) -> None:
    assert kind_of(KINDS[kind]) is kind


def test_people_read_another_name_for_each() -> None:
    assert len({name_of(order) for order in KINDS.values()}) == len(KINDS)


def test_an_order_keeps_who_asked_and_why_until_it_is_answered() -> None:
    book = OrderBook()
    order = book.issue(Resume, WHY, 0.0, 1024, (7,))
    assert order == Resume(order_id=1, reason="memory is short")
    pending = book.answered(1)
    assert pending is not None
    assert (pending.why, pending.micro_tokens, pending.requests) == (WHY, 1024, (7,))
    assert book.answered(1) is None, "an answer that is repeated is nobody's"


def test_an_order_is_overdue_when_it_is_not_accepted_and_later_when_it_is_not_done() -> None:
    book = OrderBook()
    book.issue(Resume, WHY, 0.0)
    book.issue(Checkpoint, WHY, 0.0)
    book.accepted(2, 1.0)
    assert [kind_of(p.order) for p in book.overdue(ACCEPT_WITHIN_S)] == [OrderKind.RESUME]
    book.progressed(100.0)
    assert book.overdue(100.0 + DONE_WITHIN_S - 1) == []
    assert [kind_of(p.order) for p in book.overdue(100.0 + DONE_WITHIN_S)] == [OrderKind.CHECKPOINT]
    assert not book.in_flight()


@given(st.lists(st.tuples(st.sampled_from(["issue", "accept", "answer", "late"]), st.integers(1, 8)), max_size=40))
def test_each_order_ends_once_answered_or_overdue(history: list[tuple[str, int]]) -> None:
    book, now_s, sent, ended = OrderBook(), 0.0, 0, list[int]()
    for what, number in history:
        now_s += 1.0
        match what:
            case "issue":
                sent += 1
                assert book.issue(Resume, WHY, now_s).order_id == sent
            case "accept":
                book.accepted(number, now_s)
            case "answer":
                pending = book.answered(number)
                ended += [] if pending is None else [pending.order.order_id]
            case "late":
                now_s += 30.0 * number
                ended += [p.order.order_id for p in book.overdue(now_s)]
    ended += [p.order.order_id for p in book.drop_all()]
    assert sorted(ended) == list(range(1, sent + 1))
