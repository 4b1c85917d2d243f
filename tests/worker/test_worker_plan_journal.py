"""The plan is on disk before it holds, and steps that are redone after a kill are cut as they were."""

from __future__ import annotations

import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.worker.plan.entry import Entry, appended, in_force
from memsup.worker.plan.journal import Plan

FIRST = Entry(step=1, start=1024, cause="the settings", at_unix_s=1.0)

entries = st.builds(
    Entry,
    step=st.integers(1, 30),
    start=st.just(1024),
    limit=st.none() | st.integers(1, 2000),
    ceiling=st.none() | st.integers(1, 2000),
    activation_checkpointing=st.booleans(),
    cause=st.text(max_size=20),
    at_unix_s=st.floats(0, 1e12),
)
changes = st.lists(
    st.tuples(
        st.integers(1, 30),
        st.fixed_dictionaries(
            {}, optional={"limit": st.none() | st.integers(1, 2000), "activation_checkpointing": st.booleans()}
        ).filter(bool),
    ),
    max_size=12,
)


def new_plan(folder: Path) -> Plan:
    plan = Plan(folder / "plan.jsonl")
    plan.begin(FIRST, saved=False)
    return plan


def test_it_tells_how_steps_were_cut_when_there_was_more_memory(tmp_path: Path) -> None:
    """Also a process before this one: but only what a step was computed by, and within what there is now."""
    plan = Plan(tmp_path / "plan.jsonl")
    plan.begin(msgspec.structs.replace(FIRST, planned_bytes=1000), saved=False)
    best = plan.change(10, "faster", start=4096, planned_bytes=1000)
    plan.change(20, "a trial of which nothing was computed", start=8192)
    plan.change(20, "less memory", ceiling=64, planned_bytes=700)
    plan.change(21, "restarted", limit=32)
    plan.change(20, "still less", planned_bytes=500)
    plan.change(25, "calm", limit=None)
    assert Plan(tmp_path / "plan.jsonl").when_there_was(500, 1000) == best
    assert plan.when_there_was(500, 900) is None, "it was for more than there is now"
    assert plan.when_there_was(1000, 2000) is None, "of more nothing is known"


def test_where_others_took_memory_little_by_little_and_gave_it_back_at_once_the_cut_of_the_most_counts(tmp_path: Path) -> None:
    """Of what was tried with about as much, the newest."""
    plan = new_plan(tmp_path)
    for step, planned_bytes in ((2, 1000), (4, 970), (6, 800), (8, 600), (10, 500)):
        plan.change(step, f"told of {planned_bytes}", start=1024 + step, planned_bytes=planned_bytes)
    found = plan.when_there_was(500, 1000)
    assert found is not None
    assert found.planned_bytes == 970
    found = plan.when_there_was(500, 900)
    assert found is not None
    assert found.planned_bytes == 800


@given(st.lists(entries, max_size=20))
def test_a_later_entry_replaces_all_from_its_step_on(written: list[Entry]) -> None:
    folded: list[Entry] = []
    for entry in written:
        folded = appended(folded, entry)
    for step in range(1, 32):
        expected = None  # of the entries that began by then, those that no later entry with an earlier or the same step undid
        for place, entry in enumerate(written):
            if entry.step <= step and not any(later.step <= entry.step for later in written[place + 1 :]):
                expected = entry
        assert in_force(folded, step) == expected


@given(changes)
def test_the_journal_replays_to_the_plan_that_was_in_force(made: list[tuple[int, dict[str, Any]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plan = new_plan(Path(folder))
        for step, change in made:
            plan.change(step, "a test", **change)
            replayed = new_plan(Path(folder))
            assert [replayed.at(step) for step in range(1, 40)] == [plan.at(step) for step in range(1, 40)]


@given(changes, st.integers(1, 200))
def test_a_torn_end_costs_the_last_change_only(made: list[tuple[int, dict[str, Any]]], torn_bytes: int) -> None:
    """A change that is not wholly on disk never took effect; the next one is written on a line of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.jsonl"
        plan = new_plan(Path(folder))
        for step, change in made:
            plan.change(step, "a test", **change)
        before = [plan.at(step) for step in range(1, 40)]
        whole = file.read_bytes()
        plan.change(3, "the last", limit=7, ceiling=9)
        lost = min(torn_bytes, file.stat().st_size - len(whole))
        os.truncate(file, file.stat().st_size - lost)

        torn = new_plan(Path(folder))
        assert [torn.at(step) for step in range(1, 40)] == before
        torn.change(5, "after the tear", limit=11)
        again = new_plan(Path(folder))
        assert again.at(5).limit == 11
        assert [again.at(step) for step in range(1, 5)] == before[:4]


def test_the_smallest_bound_holds(tmp_path: Path) -> None:
    plan = new_plan(tmp_path)
    assert plan.at(1).micro_tokens == 1024
    plan.change(4, "ordered", limit=512)
    plan.change(6, "out of memory", ceiling=256)
    assert [plan.at(step).micro_tokens for step in (3, 4, 5, 6, 100)] == [1024, 512, 512, 256, 256]
    plan.change(8, "lifted", limit=None)
    assert plan.at(8).micro_tokens == 256, "what running out of memory taught outlives the supervisor's limit"


def test_what_changes_nothing_is_not_written(tmp_path: Path) -> None:
    plan = new_plan(tmp_path)
    plan.change(4, "ordered", limit=512)
    size = (tmp_path / "plan.jsonl").stat().st_size
    assert plan.change(9, "ordered again", limit=512) is plan.at(9)
    assert (tmp_path / "plan.jsonl").stat().st_size == size


def test_an_order_while_steps_are_redone_undoes_what_was_planned_for_later_steps(tmp_path: Path) -> None:
    """The run was killed after step 20 and goes on from step 10; then the supervisor lifts its limit of step 15."""
    plan = new_plan(tmp_path)
    plan.change(15, "ordered", limit=128)
    plan.change(17, "out of memory", ceiling=300)
    plan.change(11, "lifted", limit=None)
    assert plan.at(16).limit is None
    assert plan.at(11).ceiling == 300, "and what was learnt is not forgotten"


def test_a_checkpoint_knows_the_plan_where_the_journal_was_lost(tmp_path: Path) -> None:
    saved = msgspec.structs.replace(FIRST, step=9, ceiling=128)
    plan = Plan(tmp_path / "plan.jsonl")
    plan.begin(saved, saved=True)
    assert plan.at(12).micro_tokens == 128


def test_a_checkpoint_does_not_undo_what_the_journal_says_of_later_steps(tmp_path: Path) -> None:
    plan = new_plan(tmp_path)
    saved = plan.change(9, "out of memory", ceiling=512)
    plan.change(14, "out of memory", ceiling=128)
    again = Plan(tmp_path / "plan.jsonl")
    again.begin(saved, saved=True)
    assert (again.at(13).micro_tokens, again.at(14).micro_tokens) == (512, 128)


@pytest.mark.parametrize("room_bytes", [0, 10])
def test_a_full_disk_does_not_keep_the_worker_from_shrinking(
    tmp_path: Path, logged: list[dict[str, Any]], room_bytes: int
) -> None:
    """The disk (here: the limit on a file's size) takes nothing more, or a part of the line: the plan holds all the same, and
    what the journal has stays whole.
    """
    plan = new_plan(tmp_path)
    file = tmp_path / "plan.jsonl"
    before = file.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room_bytes, hard))
    try:
        assert plan.change(2, "out of memory", ceiling=64).micro_tokens == 64
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert plan.at(2).micro_tokens == 64
    assert file.read_bytes() == before
    assert [event["level"] for event in logged if "why" in event] == ["error"]


def test_damage_within_the_journal_is_said_and_skipped(tmp_path: Path) -> None:
    plan = new_plan(tmp_path)
    plan.change(4, "ordered", limit=512)
    plan.change(6, "out of memory", ceiling=256)
    file = tmp_path / "plan.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + b"\x00\xff{" + lines[1] + lines[2])
    again = Plan(file)
    assert [again.at(step).micro_tokens for step in (1, 5, 6)] == [1024, 1024, 256]
    (damage,) = again.damage
    assert "line 2" in damage


def test_a_journal_of_before_is_read_and_gone_on_with_in_its_words(tmp_path: Path) -> None:
    """`one_lane` was called `single`, and still is in the file: a run goes on over an update."""
    file = tmp_path / "plan.jsonl"
    line = b'{"step":3,"start":1024,"ceiling":512,"lanes":2,"single":true,"cause":"out of memory","at_unix_s":1.0}\n'
    file.write_bytes(line)
    plan = Plan(file)
    assert plan.at(3).one_lane
    plan.change(5, "there is room", one_lane=False)
    assert msgspec.json.decode(file.read_bytes().splitlines()[1])["single"] is False
