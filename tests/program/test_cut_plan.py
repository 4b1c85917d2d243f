"""How many rows are computed at once: what orders, exhaustion and measured peaks make of it."""

from __future__ import annotations

from typing import NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from memsup.cut_plan import (
    FIRST_WAIT_WINDOWS,
    MEASURED_EVERY,
    PLANNED_FRACTION,
    SETTLING_WINDOWS,
    STEADY_WINDOWS,
    Planner,
    non_negative_least_squares,
)
from memsup.worker.plan import footprint

MIB = 1 << 20


class Batch(NamedTuple):
    count: int
    length: int

    def tokens(self, begin: int, end: int) -> int:
        return (end - begin) * self.length


def parts(planner: Planner, batch: Batch) -> list[int]:
    found: list[int] = []
    while sum(found) < batch.count:
        found.append(planner.rows(batch, sum(found)))
    return found


def windows(planner: Planner, count: int) -> list[int | None]:
    """Lets so many windows go well; returns the bounds to which it grew by itself."""
    moves = [planner.window_done() for _ in range(count)]
    return [move.after for move in moves if move is not None]


@given(st.integers(1, 64), st.integers(1, 512), st.integers(1, 20_000), st.booleans())
def test_parts_are_all_of_the_batch_about_equal_and_within_the_bound(
    count: int, length: int, bound: int, in_powers: bool
) -> None:
    batch = Batch(count, length)
    found = parts(Planner(most_tokens=bound, in_powers=in_powers), batch)
    assert sum(found) == count
    assert all(rows == 1 or rows * length <= bound for rows in found)
    if in_powers and len(found) > 1:
        assert all(rows & (rows - 1) == 0 for rows in found)
    elif len(found) > 1:
        assert max(found) - min(found) <= max(1, max(found) // 2) or len(found) == 2
        assert len(found) == -(-count // max(1, bound // length))


def test_without_a_bound_a_batch_is_whole() -> None:
    assert parts(Planner(), Batch(64, 512)) == [64]


def test_running_out_halves_and_what_failed_is_tried_again_later_each_time() -> None:
    planner, batch = Planner(), Batch(16, 10)
    parts(planner, batch)
    assert planner.out_of_memory(160) == 80
    assert planner.out_of_memory(80) == 40
    assert windows(planner, FIRST_WAIT_WINDOWS - 1) == []
    assert windows(planner, 1) == [80]
    assert planner.out_of_memory(80) == 40
    assert windows(planner, 2 * FIRST_WAIT_WINDOWS - 1) == []
    assert windows(planner, 1 + STEADY_WINDOWS) == [80, None]
    assert parts(planner, batch) == [16]


def test_what_a_life_before_has_found_to_fit_is_begun_with_and_larger_parts_are_tried_as_after_running_out() -> None:
    planner, batch = Planner(fitted_tokens=40), Batch(16, 10)
    assert parts(planner, batch) == [4] * 4
    assert windows(planner, FIRST_WAIT_WINDOWS - 1) == []
    assert windows(planner, 1) == [80]


def test_it_grows_while_ordered_to_only_as_far_as_it_may() -> None:
    planner, batch = Planner(most_tokens=40), Batch(16, 10)
    assert parts(planner, batch) == [4] * 4
    assert windows(planner, 1000) == []
    assert planner.order(None, halve=False, may_grow=True, in_use=40) == 80
    assert windows(planner, 2 * STEADY_WINDOWS) == [None]
    assert planner.order(None, halve=True, may_grow=True, in_use=160) == 80
    assert planner.order(30, halve=False, may_grow=True, in_use=80) == 30
    assert planner.order(None, halve=False, may_grow=False, in_use=30) == 30


def fed(limit_bytes: int, batch: Batch) -> Planner:
    """A planner that has seen 100 MiB and 1 MiB for each token of parts of several lengths."""
    planner = Planner(limit_bytes=limit_bytes)
    windows(planner, 10)
    for rows in range(1, 17):
        tokens = rows * batch.length
        planner.observe(tokens, batch.length, 100 * MIB, (100 + tokens) * MIB)
    return planner


def test_what_is_predicted_not_to_fit_is_cut_before_it_runs_out() -> None:
    batch = Batch(16, 10)
    assert parts(fed(1000 * MIB, batch), batch) == [16]
    tight = fed(200 * MIB, batch)
    bound = tight.bound(10)
    assert bound is not None
    assert 0.8 * (PLANNED_FRACTION * 200 - 108) < bound <= PLANNED_FRACTION * 200 - 100
    assert max(parts(tight, batch)) == bound // 10
    tight.limit_to(1000 * MIB)
    assert parts(tight, batch) == [16]


def test_memory_is_measured_of_the_first_parts_and_then_of_a_few() -> None:
    planner = Planner(limit_bytes=MIB)
    assert not planner.wants_peak()  # what comes with the first steps says nothing of the others
    windows(planner, SETTLING_WINDOWS)
    measured = [planner.wants_peak() for _ in range(1000)]
    assert all(measured[:30])
    assert sum(measured[500:]) == pytest.approx(500 / MEASURED_EVERY, abs=1)
    assert not any(Planner().wants_peak() for _ in range(10))


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 512)), min_size=3, max_size=40, unique=True),
    st.tuples(st.floats(0, 1e9), st.floats(0, 1e5), st.floats(0, 100)),
)
def test_the_line_is_that_of_the_built_in_training(shapes: list[tuple[int, int]], true: tuple[float, float, float]) -> None:
    points = [(1.0, float(tokens), float(tokens * length)) for tokens, length in shapes]
    values = [sum(weight * x for weight, x in zip(true, point, strict=True)) for point in points]
    ours = non_negative_least_squares(points, values)
    theirs = footprint.non_negative_least_squares(np.array(points), np.array(values))
    largest = max(values) or 1.0
    assert min(ours) >= 0
    for point, value in zip(points, values, strict=True):
        fitted = sum(weight * x for weight, x in zip(ours, point, strict=True))
        reference = float(np.dot(theirs, point))
        assert abs(fitted - value) <= max(abs(reference - value) * 1.01, 1e-3 * largest)


def test_columns_that_say_the_same_are_left_out() -> None:
    points = [(1.0, 2.0, 4.0), (1.0, 3.0, 6.0), (1.0, 4.0, 8.0)]
    assert non_negative_least_squares(points, [5.0, 7.0, 9.0]) == pytest.approx([1.0, 2.0, 0.0])
    assert non_negative_least_squares(points, [0.0, 0.0, 0.0]) == [0.0, 0.0, 0.0]
