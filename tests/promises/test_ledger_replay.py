"""A decision in the ledger can be made once more: the line has all that the ladder decided on, and the same comes of it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.old_state import old_entries

from memsup.supervisor.cli.drill import _room
from memsup.supervisor.decide.events import Event, Move
from memsup.supervisor.decide.ladder import HoldReason, Ladder, MemoryLimits, Proposal, Stance, WorkerView, replay
from memsup.supervisor.decide.readings import DiskReading, MemoryReading
from memsup.supervisor.decide.run.actions import Record
from memsup.supervisor.drill.janitor import run_folders
from memsup.supervisor.drill.scenes import memory as memory_scene
from memsup.supervisor.record.ledger import Entry, line, read_entry

GIB = 1 << 30
LIMITS = MemoryLimits(worker_bytes=10 * GIB, reserve_bytes=2 * GIB)
SIZES = st.none() | st.integers(0, 12 * GIB) | st.integers(8 * GIB, 10 * GIB)
WORKERS = st.builds(
    WorkerView,
    alive=st.booleans(),
    takes_orders=st.booleans(),
    order_in_flight=st.booleans(),
    can_shrink=st.booleans(),
    held=st.booleans(),
    frozen=st.booleans(),
)
PROPOSALS = st.builds(
    Proposal,
    duty_fraction=st.sampled_from([1.0, 0.73]),
    hold=st.none() | st.sampled_from(HoldReason),
    shrink=st.booleans(),
    may_grow=st.booleans(),
    vram_limit_bytes=st.none() | st.integers(0, GIB),
    reason=st.sampled_from(["", "GPU 0 is at 86 °C"]),
)
LOOKS = st.tuples(
    st.floats(0.01, 25.0),
    SIZES,
    SIZES,
    WORKERS,
    st.none() | st.integers(0, 2 * GIB),
    st.lists(PROPOSALS, max_size=3).map(tuple),
)


@given(st.lists(LOOKS, min_size=1, max_size=30))
def test_every_look_can_be_replayed_from_its_line(looks: list[tuple]) -> None:  # type: ignore[type-arg]
    """Whatever is read, whoever proposes what, and however the ladder stood: through JSON, to the same stance."""
    ladder, now_s = Ladder(LIMITS, disk_floor_bytes=GIB), 1000.0
    for after_s, worker_bytes, available_bytes, worker, disk_bytes, proposals in looks:
        now_s += after_s
        memory = MemoryReading(
            at_s=now_s, ram_total_bytes=16 * GIB, ram_available_bytes=available_bytes, worker_bytes=worker_bytes
        )
        disk = DiskReading(at_s=now_s, free_bytes=disk_bytes)
        stance = ladder.step(now_s, memory, disk, worker, proposals)
        written = line(
            Record(event=Event.RUNG, reason=stance.reason, rung=stance.rung.name.lower(), ladder=ladder.decided_on),
            at=now_s,
            mono=now_s,
            boot="b",
            state="running",
            step=None,
            memory=memory,
            disk=disk,
        )
        assert decided_again(read_entry(written)) == stance


def decided_again(entry: Entry) -> Stance:
    assert entry.ladder is not None
    assert entry.memory is not None
    return replay(entry.ladder, entry.memory, entry.disk)


def assert_decided_alike(entry: Entry) -> None:
    """The line and the same decision, made again, are about the same."""
    stance = decided_again(entry)
    match entry.event, entry.move:
        case Event.FREEZE, _:
            assert stance.freeze, entry
        case Event.KILL, _:
            assert stance.kill, entry
        case Event.RUNG, move:
            assert stance.rung.name.lower() == entry.rung, entry
            assert stance.shrink or move is not Move.SHRINK, entry
            assert stance.release or move is not Move.RELEASE, entry


def test_each_decision_in_a_ledger_of_the_former_format_is_made_again() -> None:
    """As recorded by the state before (`kit/old_state.py`)."""
    decisions = [entry for entry in old_entries() if entry.rung is not None]
    assert {Event.RUNG, Event.FREEZE, Event.KILL} <= {entry.event for entry in decisions}
    for entry in decisions:
        assert_decided_alike(entry)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_decision_of_a_squeezed_and_killed_run_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The drill's two scenes about memory: real supervisor, real training, real memory. Rung, reason and what is asked."""
    for name in ("TMPDIR", "PYTHONPATH"):  # which the drill changes for its runs
        monkeypatch.setenv(name, os.environ.get(name, str(tmp_path) if name == "TMPDIR" else ""))
    with _room(threading.Event()) as room:
        assert len(list(memory_scene(room))) == 2, "squeeze and runaway are proved"
        lines = run_folders(room.folder, "memory").ledger.read_bytes().splitlines()
    entries = [read_entry(text) for text in lines]
    decisions = [entry for entry in entries if entry.rung is not None]
    assert {"stop_growing", "shrink", "grow"} <= {str(entry.rung) for entry in decisions}
    assert {Event.RUNG, Event.FREEZE} <= {entry.event for entry in decisions}
    for entry in decisions:
        assert_decided_alike(entry)
    up = next(entry for entry in decisions if entry.rung == "shrink")
    assert up.memory is not None
    assert up.memory.worker_bytes is not None
    halved = msgspec.structs.replace(up, memory=msgspec.structs.replace(up.memory, worker_bytes=up.memory.worker_bytes // 2))
    assert decided_again(halved) != decided_again(up), "it is the readings that decide"
    ladders = [len(msgspec.json.encode(entry.ladder)) for entry in decisions]
    assert max(ladders) < 1_000
