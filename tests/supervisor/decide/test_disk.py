"""One limit of free disk: who warns before a run and who holds during it mean the same."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from memsup.supervisor.cli.check import _warnings
from memsup.supervisor.decide.disk import disk_floor_bytes
from memsup.supervisor.decide.ladder import HoldReason, Ladder, MemoryLimits, WorkerView
from memsup.supervisor.decide.readings import DiskReading, Machine, MemoryReading

GIB = 1 << 30


def holds(free_bytes: int, floor_bytes: int) -> bool:
    ladder = Ladder(MemoryLimits(worker_bytes=4 * GIB, reserve_bytes=GIB), disk_floor_bytes=floor_bytes)
    disk = DiskReading(at_s=1.0, free_bytes=free_bytes)
    return HoldReason.DISK in ladder.step(1.0, MemoryReading(at_s=1.0), disk, WorkerView(alive=True)).holds


@given(st.integers(0, 1 << 30))
def test_check_warns_of_a_full_disk_exactly_where_a_run_would_hold(free_bytes: int) -> None:
    """It warned below 256 MiB, while training held below 64."""
    machine = Machine(ram_total_bytes=8 * GIB, ram_available_bytes=4 * GIB, disk_free_bytes=free_bytes, gpu_note="none")
    warned = any("a run would hold at once" in warning for warning in _warnings(machine, Path("/nowhere/state")))
    assert warned == holds(free_bytes, disk_floor_bytes(None))


@given(st.integers(0, 1 << 40), st.none() | st.integers(0, 1 << 40))
def test_training_holds_while_the_next_checkpoint_would_not_fit(free_bytes: int, checkpoint_bytes: int | None) -> None:
    if holds(free_bytes, disk_floor_bytes(checkpoint_bytes)):
        return
    assert free_bytes >= (checkpoint_bytes or 0)
