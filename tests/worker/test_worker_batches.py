"""Which rows each step sees never depends on memory; only the cut does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.worker.plan.batches import Order, Schedule, cut, learning_rate, shuffled, split
from memsup.worker.plan.cost import Costs
from memsup.worker.plan.entry import Entry
from memsup.worker.plan.footprint import shape_of


def plan(micro_tokens: int, **bounds: object) -> Entry:
    return Entry(step=1, start=micro_tokens, cause="a test", at_unix_s=0.0, **bounds)  # type: ignore[arg-type]


schedules = st.builds(
    Schedule,
    rows=st.integers(1, 300),
    effective_batch=st.integers(1, 40),
    epochs=st.floats(0.01, 4, allow_nan=False),
    seed=st.integers(0, 2**64 - 1),
)


@given(schedules)
def test_every_whole_epoch_sees_each_row_once(schedule: Schedule) -> None:
    order = Order(schedule)
    seen: list[int] = []
    for step in range(1, schedule.steps_per_epoch + 1):
        seen += order.batch(step).tolist()
    assert sorted(seen) == list(range(schedule.rows))


@given(schedules, st.data())
def test_a_step_sees_the_same_rows_whatever_came_before(schedule: Schedule, data: st.DataObject) -> None:
    """Resuming needs a number only: no step depends on the steps before it having been asked for."""
    straight = Order(schedule)
    in_order = {step: straight.batch(step).tolist() for step in range(1, schedule.total_steps + 1)}
    jumping = Order(schedule)
    for step in data.draw(st.lists(st.integers(1, schedule.total_steps), max_size=20)):
        assert jumping.batch(step).tolist() == in_order[step]


@given(schedules)
def test_samples_add_up(schedule: Schedule) -> None:
    order = Order(schedule)
    samples = 0
    for step in range(1, schedule.total_steps + 1):
        samples += len(order.batch(step))
        assert samples == schedule.samples_after(step)
    assert schedule.total_steps == max(1, math.ceil(schedule.epochs * schedule.steps_per_epoch - 1e-9))


@given(schedules)
def test_the_model_is_evaluated_after_each_epoch_and_at_the_end(schedule: Schedule) -> None:
    evaluated = [step for step in range(schedule.total_steps + 1) if schedule.ends_epoch(step)]
    assert evaluated[-1] == schedule.total_steps
    assert all(step % schedule.steps_per_epoch == 0 for step in evaluated[:-1])
    assert len(evaluated) == math.ceil(schedule.total_steps / schedule.steps_per_epoch)


def test_epochs_differ_and_seeds_differ() -> None:
    orders = {tuple(shuffled(100, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_the_order_is_the_same_for_ever() -> None:
    """A checkpoint of today is continued by the numpy of tomorrow: these are the values of the algorithm in the docstring,
    computed by hand from SplitMix64 with Python's integers.
    """

    def mixed(value: int) -> int:
        value = (value + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        return value ^ (value >> 31)

    for seed, epoch in [(42, 0), (42, 1), (2**64 - 1, 7)]:
        stream = mixed((mixed(seed) + epoch) % 2**64)
        expected = sorted(range(50), key=lambda row: mixed((row + stream) % 2**64))
        assert shuffled(50, seed, epoch).tolist() == expected


def test_the_order_shows_no_trace_of_the_order_in_the_file() -> None:
    """Rank correlation of 20,000 rows with their place in the file, in several epochs: below four standard deviations."""
    rows = 20_000
    for epoch in range(8):
        correlation = np.corrcoef(np.arange(rows), shuffled(rows, 42, epoch))[0, 1]
        assert abs(correlation) < 4 / math.sqrt(rows)


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    lengths = draw(st.lists(st.integers(1, 600), min_size=1, max_size=40))
    rows = draw(st.permutations(range(1000, 1000 + len(lengths))))
    return np.array(rows, np.int64), np.array(lengths, np.int32), draw(st.integers(1, 5000))


@given(batches())
def test_a_cut_keeps_every_row_once_and_stays_within_its_tokens(batch: tuple[np.ndarray, np.ndarray, int]) -> None:
    rows, lengths, micro_tokens = batch
    length_of = dict(zip(rows.tolist(), lengths.tolist(), strict=True))
    micro_batches = cut(rows, lengths, plan(micro_tokens))
    assert sorted(row for micro in micro_batches for row in micro.tolist()) == sorted(rows.tolist())
    for micro in micro_batches:
        longest = max(length_of[row] for row in micro.tolist())
        assert len(micro) == 1 or len(micro) * longest <= micro_tokens
        assert length_of[int(micro[0])] == longest


@given(batches())
def test_the_longest_come_first_and_no_micro_batch_could_take_more(batch: tuple[np.ndarray, np.ndarray, int]) -> None:
    rows, lengths, micro_tokens = batch
    length_of = dict(zip(rows.tolist(), lengths.tolist(), strict=True))
    micro_batches = cut(rows, lengths, plan(micro_tokens))
    longest = [length_of[int(micro[0])] for micro in micro_batches]
    assert longest == sorted(longest, reverse=True)
    for micro, first in zip(micro_batches[:-1], longest[:-1], strict=True):
        assert (len(micro) + 1) * first > micro_tokens


@given(batches(), st.integers(1, 5000))
def test_every_cut_takes_the_rows_in_the_same_sequence(batch: tuple[np.ndarray, np.ndarray, int], other_tokens: int) -> None:
    """So a position within a step means the same row under every plan."""
    rows, lengths, micro_tokens = batch
    one = np.concatenate(cut(rows, lengths, plan(micro_tokens)))
    other = np.concatenate(cut(rows, lengths, plan(other_tokens)))
    assert one.tolist() == other.tolist()


known = st.builds(Costs, start=st.floats(0, 1e4), per_square=st.floats(0, 0.1), per_size=st.floats(0, 0.1))


@given(batches(), st.one_of(st.none(), known))
def test_in_two_lanes_every_row_is_computed_once_and_both_parts_stay_within_the_tokens(
    batch: tuple[np.ndarray, np.ndarray, int], costs: Costs | None
) -> None:
    rows, lengths, micro_tokens = batch
    length_of = dict(zip(rows.tolist(), lengths.tolist(), strict=True))
    entry, alone = plan(micro_tokens, lanes=2, costs=costs), plan(micro_tokens, costs=costs)
    micro_batches = cut(rows, lengths, entry)
    assert np.concatenate(micro_batches).tolist() == np.concatenate(cut(rows, lengths, alone)).tolist()
    for micro in micro_batches:
        of_micro = np.array([length_of[row] for row in micro.tolist()], np.int32)
        parts = split(micro, of_micro, entry)
        assert [part.tolist() for part in split(micro, of_micro, alone)] == [micro.tolist()]
        assert np.concatenate(parts).tolist() == micro.tolist()
        assert len(parts) == (1 if len(micro) == 1 else 2)
        tokens = shape_of([np.array([length_of[row] for row in part.tolist()]) for part in parts]).tokens
        assert len(micro) == 1 or tokens <= micro_tokens


@given(batches(), known, st.booleans())
def test_the_parts_of_a_micro_batch_cost_as_nearly_the_same_as_can_be(
    batch: tuple[np.ndarray, np.ndarray, int], costs: Costs, packed: bool
) -> None:
    rows, lengths, _ = batch
    rows, lengths = rows, np.sort(lengths)[::-1]

    def longer(middle: int) -> float:
        shapes = [shape_of([part], packed=packed) for part in (lengths[:middle], lengths[middle:]) if len(part)]
        return max(costs.of(shape.tokens, shape.squares) for shape in shapes)

    parts = split(rows, lengths, plan(10**9, lanes=2, costs=costs, packed=packed))
    best = min(longer(middle) for middle in range(1, max(len(rows), 2)))
    assert longer(len(parts[0])) == pytest.approx(best)


@given(total=st.integers(1, 2000), warmup=st.floats(0, 1), peak=st.floats(1e-8, 1))
def test_the_learning_rate_rises_then_falls_and_every_step_learns(total: int, warmup: float, peak: float) -> None:
    rates = [learning_rate(step, peak=peak, total_steps=total, warmup_fraction=warmup) for step in range(1, total + 1)]
    assert all(0 < rate <= peak for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[top] == pytest.approx(peak, rel=1 / (total - math.ceil(total * warmup) + 1) + 1e-9)
