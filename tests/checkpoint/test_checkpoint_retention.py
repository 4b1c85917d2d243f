"""Promise: at least two sound checkpoints and the best one are kept; deletion and pauses follow from what lies on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.checkpoint.info import Info
from memsup.checkpoint.retention import best_of, deletable
from memsup.checkpoint.room import SPARE_BYTES, Verdict, judge
from memsup.folders import aside_name, aside_step, next_name, order

MB = 10**6


def checkpoint(step: int, *, metric: float | None = None, problem: str | None = None, size: int = 100 * MB) -> Info:
    return Info(Path(f"step-{step:08}"), step, 1.0, size, metric, problem)


folders = st.lists(
    st.tuples(st.none() | st.floats(-10, 10), st.none() | st.just("torn")),
    max_size=12,
).map(lambda found: [checkpoint(100 - n, metric=metric, problem=problem) for n, (metric, problem) in enumerate(found)])


@given(folders, st.integers(2, 5))
def test_the_newest_sound_ones_and_the_best_are_never_deleted(newest_first: list[Info], keep: int) -> None:
    gone = deletable(newest_first, keep)
    sound = [info for info in newest_first if info.problem is None]
    assert not set(sound[:keep]) & set(gone)
    assert best_of(newest_first) not in gone
    assert len(sound) - len(gone) >= min(keep, len(sound))
    assert len(sound) - len(gone) <= keep + 1
    assert all(info.problem is None for info in gone), "damaged ones are evidence, not rubbish"
    assert gone == sorted(gone, key=lambda info: info.step or 0), "the oldest goes first"


@given(folders, st.integers(2, 5))
def test_deleting_twice_deletes_nothing_more(newest_first: list[Info], keep: int) -> None:
    gone = deletable(newest_first, keep)
    assert deletable([info for info in newest_first if info not in gone], keep) == []


def test_damaged_ones_do_not_count_as_kept() -> None:
    """Two torn newest ones must not cost the two sound ones before them."""
    found = [checkpoint(5, problem="torn"), checkpoint(4, problem="torn"), checkpoint(3), checkpoint(2), checkpoint(1)]
    assert [info.step for info in deletable(found, 2)] == [1]


def test_of_equally_good_ones_the_earliest_is_the_best() -> None:
    """A later one is no improvement: the model is to have the weights that were called the best when they were measured."""
    newest_first = [checkpoint(3, metric=0.5), checkpoint(2, metric=0.9), checkpoint(1, metric=0.9), checkpoint(1, metric=0.9)]
    assert best_of(newest_first) is newest_first[2]


def test_a_negative_metric_counts_as_well() -> None:
    assert best_of([checkpoint(2, metric=-3.0), checkpoint(1, metric=-2.0)]) == checkpoint(1, metric=-2.0)


def test_fewer_than_two_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        deletable([], 1)


# --------------------------------------------------------------------------------------------------------------------
# Room on the disk

sizes = st.integers(0, 10**12)


@given(sizes, sizes, st.lists(st.builds(checkpoint, st.integers(1, 99), size=sizes), max_size=4), st.booleans())
def test_a_save_never_takes_the_room_of_the_emergency_checkpoint(
    free: int, save: int, dispensable: list[Info], emergency: bool
) -> None:
    found = judge(free, save, dispensable=dispensable, emergency=emergency)
    gained = sum(info.bytes or 0 for info in found.prune)
    if found.verdict is not Verdict.PAUSE:
        assert free + gained - save >= (0 if emergency else save) + SPARE_BYTES
    else:
        assert free + sum(info.bytes or 0 for info in dispensable) < found.needed_bytes
    assert (found.verdict is Verdict.PRUNE) == bool(found.prune)


@given(sizes, sizes)
def test_nothing_is_pruned_that_need_not_be(free: int, save: int) -> None:
    dispensable = [checkpoint(n) for n in range(1, 5)]
    found = judge(free, save, dispensable=dispensable)
    assert found.prune == tuple(dispensable[: len(found.prune)])
    if found.prune:
        assert free + sum(info.bytes or 0 for info in found.prune[:-1]) < found.needed_bytes


def test_the_disk_fills_up_over_a_night() -> None:
    """Fine; then the dispensable one goes; then training pauses; the emergency checkpoint still fits; then nothing does."""
    old = [checkpoint(1)]
    assert judge(300 * MB, 100 * MB, dispensable=old).verdict is Verdict.FINE
    assert judge(200 * MB, 100 * MB, dispensable=old).verdict is Verdict.PRUNE
    paused = judge(200 * MB, 100 * MB)
    assert paused.verdict is Verdict.PAUSE
    assert paused.text == (
        "The disk is too full for another checkpoint: 200.0 MB free, 233.6 MB needed for a checkpoint and an emergency one. "
        "33.6 MB more would do."
    )
    assert judge(200 * MB, 100 * MB, emergency=True).verdict is Verdict.FINE
    assert judge(100 * MB, 100 * MB, emergency=True).verdict is Verdict.PAUSE


# --------------------------------------------------------------------------------------------------------------------
# Names

steps = st.integers(0, 10**15 - 1)


@given(st.lists(steps, max_size=6), steps)
def test_each_new_name_is_the_newest_of_its_step(taken_steps: list[int], step: int) -> None:
    taken: list[str] = []
    for earlier in [*taken_steps, step, step]:
        name = next_name(earlier, taken)
        found = order(name)
        assert found is not None
        assert found[0] == earlier
        assert all(found > other for other in map(order, taken) if other and other[0] == earlier)
        taken.append(name)
    assert len(set(taken)) == len(taken)


@given(steps, st.integers(1, 5))
def test_what_is_set_aside_keeps_its_step(step: int, times: int) -> None:
    taken: list[str] = []
    for _ in range(times):
        taken.append(aside_name(next_name(step, []), taken))
        assert aside_step(taken[-1]) == step
        assert order(taken[-1]) is None, "what is set aside is no checkpoint any more"
    assert len(set(taken)) == times


@given(st.text(max_size=30))
def test_other_names_are_nobodys_checkpoints(name: str) -> None:
    found = order(name)
    assert found is None or next_name(found[0], []).split(".")[0] == name.split(".")[0]
