"""Promise: evaluations in between, an early end and which weights are the best depend on results alone."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.worker.plan.batches import Schedule
from memsup.worker.plan.stopping import EvaluateEvery, Patience, ends_after, evaluates_after, is_better, merit_of

merits = st.lists(st.sampled_from([-math.inf, math.nan, 0.1, 0.5, 0.5, 0.7, 0.9]), max_size=12)


def judged(found: list[float], patience: Patience) -> tuple[int | None, int, int]:
    """The place of the best result, how many came since, and how many evaluations there were, as the training counts them."""
    best: int | None = None
    without_rise = 0
    for place, merit in enumerate(found):
        better = is_better(merit, None if best is None else found[best])
        best, without_rise = (place, 0) if better else (best, without_rise + 1)
        if ends_after(without_rise, patience):
            return best, without_rise, place + 1
    return best, without_rise, len(found)


@given(merits, st.none() | st.integers(1, 5))
def test_the_best_is_the_first_of_the_greatest_and_patience_counts_from_it(found: list[float], most: int | None) -> None:
    best, without_rise, seen = judged(found, "off" if most is None else most)
    finite = [merit for merit in found[:seen] if math.isfinite(merit)]
    assert (best is None) == (not finite)
    assert best is None or best == found.index(max(finite))
    assert without_rise == (seen if best is None else seen - 1 - best)
    assert seen == len(found) or without_rise == most, "it ends early when, and only when, patience is over"
    assert most is None or without_rise <= most


@given(st.integers(1, 40), st.integers(1, 5), st.floats(0.1, 4), st.integers(1, 50) | st.just("epoch"))
def test_evaluations_are_as_far_apart_as_asked_for_and_the_last_step_has_one(
    rows: int, batch: int, epochs: float, every: EvaluateEvery
) -> None:
    schedule = Schedule(rows=rows, effective_batch=batch, epochs=epochs, seed=1)
    at = [step for step in range(schedule.total_steps + 1) if evaluates_after(step, schedule, every)]
    apart = schedule.steps_per_epoch if every == "epoch" else every
    assert at[-1] == schedule.total_steps
    assert at[0] > 0
    assert all(after - before == apart for before, after in itertools.pairwise([0, *at[:-1]]))
    assert at[-1] - ([0, *at][-2]) <= apart


def test_accuracy_counts_before_loss_of_which_less_is_better() -> None:
    assert merit_of({"loss": 0.5, "accuracy": 0.8}) == 0.8
    assert merit_of({"loss": 0.5}) > merit_of({"loss": 0.6})
    with pytest.raises(StopIteration):
        merit_of({"rows": 4.0})
