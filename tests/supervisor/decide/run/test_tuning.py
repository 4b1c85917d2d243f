"""What a worker is told of micro-batch, pace and GPU memory: each change once, and one order of a kind at a time."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from memsup.shared.messages import AnyOrder, LimitMemory, LimitMicroBatch, Pace
from memsup.supervisor.decide.events import By
from memsup.supervisor.decide.ladder import HoldReason, Stance
from memsup.supervisor.decide.run.orders import OrderBook
from memsup.supervisor.decide.run.tuning import PACE_STEP, Tuning

STANCES = st.builds(
    Stance,
    may_grow=st.booleans(),
    shrink=st.booleans(),
    duty_fraction=st.sampled_from([1.0, 0.99, 0.8, 0.3]),
    vram_limit_bytes=st.sampled_from([None, 1 << 30, 3 << 30]),
    limit_bytes=st.sampled_from([None, 2 << 30, 3 << 30, 4 << 30]),
    reason=st.sampled_from(["", "memory is short"]),
)


def told(tuning: Tuning, stance: Stance, orders: OrderBook) -> list[AnyOrder]:
    tuning.ask(stance)
    return [orders.issue(make, why, 0.0) for make, why in tuning.due(stance, orders)]


def test_a_calm_machine_has_nothing_to_say() -> None:
    assert told(Tuning(), Stance(), OrderBook()) == []


def test_a_run_that_goes_on_gently_is_bounded_once_and_not_let_grow_by_that_when_memory_is_short() -> None:
    tuning, orders = Tuning(most_micro_tokens=512), OrderBook()
    (first,) = told(tuning, Stance(may_grow=False, shrink=True, reason="memory is short"), orders)
    assert first == LimitMicroBatch(order_id=1, reason="memory is short", halve=True, may_grow=False)
    orders.answered(first.order_id)
    (then,) = told(tuning, Stance(), orders)
    assert then == LimitMicroBatch(order_id=2, reason="gentler since the machine died", micro_tokens=512, may_grow=True)
    orders.answered(then.order_id)
    assert told(tuning, Stance(), orders) == []


def test_a_halving_that_is_asked_for_while_another_order_is_on_its_way_is_not_forgotten() -> None:
    tuning, orders = Tuning(), OrderBook()
    (first,) = told(tuning, Stance(may_grow=False), orders)
    assert told(tuning, Stance(may_grow=False, shrink=True), orders) == []
    orders.answered(first.order_id)
    (second,) = told(tuning, Stance(may_grow=False), orders)
    assert isinstance(second, LimitMicroBatch)
    assert second.halve


def test_less_memory_is_planned_for_instead_of_halving() -> None:
    """What the worker may hold goes with the order that has it stop growing; the halving that was due is not asked for."""
    tuning, orders = Tuning(told_limit_bytes=4 << 30), OrderBook()
    (first,) = told(tuning, Stance(limit_bytes=2 << 30, may_grow=False, shrink=True, reason="memory is short"), orders)
    assert first == LimitMicroBatch(order_id=1, reason="memory is short", may_grow=False, limit_bytes=2 << 30)
    orders.answered(first.order_id)
    (second,) = told(tuning, Stance(limit_bytes=2 << 30, may_grow=False, shrink=True, reason="memory is short"), orders)
    assert second == LimitMicroBatch(order_id=2, reason="memory is short", may_grow=False, halve=True)
    orders.answered(second.order_id)
    (third,) = told(tuning, Stance(limit_bytes=4 << 30), orders)
    assert third == LimitMicroBatch(order_id=3, reason="memory is calm again", limit_bytes=4 << 30)


def test_who_takes_no_memory_is_told_nothing_of_it() -> None:
    assert told(Tuning(told_limit_bytes=4 << 30), Stance(limit_bytes=4 << 30), OrderBook()) == []
    assert told(Tuning(told_limit_bytes=4 << 30, cuts=False), Stance(limit_bytes=2 << 30), OrderBook()) == []


def test_each_order_answers_the_pressure_that_it_is_a_means_against() -> None:
    both = (HoldReason.MEMORY, HoldReason.HEAT)
    tuning, orders = Tuning(), OrderBook()
    stance = Stance(shrink=True, may_grow=False, duty_fraction=0.5, vram_limit_bytes=1 << 30, pressures=both)
    tuning.ask(stance)
    whys = [why for _, why in tuning.due(stance, orders)]
    assert [why.pressures for why in whys] == [(HoldReason.MEMORY,), (HoldReason.HEAT,), (HoldReason.MEMORY,)]
    assert {why.by for why in whys} == {By.LADDER}
    calm = [why for _, why in tuning.due(Stance(), orders)]
    assert [why.pressures for why in calm] == [(), ()], "it grows and computes all the time again, since nothing is short"


def test_each_of_several_ranks_is_told_of_its_own_card_one_after_the_other() -> None:
    """What fills the card of one makes that one smaller; a halving of all makes those of single ones needless."""
    tuning, orders = Tuning(), OrderBook()
    cards = Stance(shrink=True, shrink_ranks=(1, 3), vram_limits=((0, 5 << 30), (1, 2 << 30)), may_grow=False, reason="rank 1")
    (halve, limit) = told(tuning, cards, orders)
    assert halve == LimitMicroBatch(order_id=1, reason="rank 1", halve=True, may_grow=False, rank=1)
    assert limit == LimitMemory(order_id=2, reason="what others leave it", device_bytes=5 << 30, rank=0)
    orders.drop_all()
    calm = replace(cards, shrink=False, shrink_ranks=None)
    (halve, limit) = told(tuning, calm, orders)
    assert (halve.rank, limit.rank) == (3, 1)  # type: ignore[union-attr]
    orders.drop_all()
    (stops,) = told(tuning, calm, orders)
    assert stops == LimitMicroBatch(order_id=5, reason="rank 1", may_grow=False)
    orders.drop_all()
    (everybody,) = told(tuning, replace(cards, shrink_ranks=None), orders)
    assert (everybody.halve, everybody.rank) == (True, None)  # type: ignore[union-attr]
    orders.drop_all()
    assert told(tuning, calm, orders) == []


@given(st.lists(st.tuples(STANCES, st.booleans()), max_size=40))
def test_in_the_end_the_worker_has_been_told_what_the_last_stance_says(steps: list[tuple[Stance, bool]]) -> None:
    tuning, orders, sent = Tuning(), OrderBook(), list[AnyOrder]()
    asked = 0
    for stance, answered in steps:
        sent += told(tuning, stance, orders)
        asked += stance.shrink
        for kind in (LimitMicroBatch, Pace, LimitMemory):
            assert sum(isinstance(pending.order, kind) for pending in orders._pending.values()) <= 1
        if answered:
            orders.drop_all()
    orders.drop_all()
    last = steps[-1][0] if steps else Stance()
    sent += told(tuning, replace(last, shrink=False), orders)
    cuts = [order for order in sent if isinstance(order, LimitMicroBatch)]
    paces = [order.duty_fraction for order in sent if isinstance(order, Pace)]
    limits = [order.device_bytes for order in sent if isinstance(order, LimitMemory)]
    assert (cuts[-1].may_grow if cuts else True) == last.may_grow
    assert sum(cut.halve for cut in cuts) <= asked
    assert any(cut.halve or cut.limit_bytes for cut in cuts) == (asked > 0 or any(stance.limit_bytes for stance, _ in steps))
    told_bytes = [cut.limit_bytes for cut in cuts if cut.limit_bytes is not None]
    assert last.limit_bytes in (None, told_bytes[-1] if told_bytes else None)
    assert abs((paces[-1] if paces else 1.0) - last.duty_fraction) < PACE_STEP
    assert last.vram_limit_bytes in (None, limits[-1] if limits else None)
    orders.drop_all()
    assert told(tuning, replace(last, shrink=False), orders) == []
