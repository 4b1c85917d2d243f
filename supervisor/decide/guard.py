"""The guard's judgement: the readings in force and the devices' proposals in, the ladder's stance and the next look out. Pure.

`main.py` reads memory and disk and hands them in; `ladder.py` decides. What is asked once is asked once here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import msgspec

from memsup.supervisor.decide.disk import disk_floor_bytes
from memsup.supervisor.decide.ladder import HoldReason, Ladder, Proposal, Rung, Stance, WorkerView, memory_use
from memsup.supervisor.decide.readings import DiskReading, MemoryReading
from memsup.supervisor.decide.uses import STOP_GROWING_USE

REST_S = 1.0
"""The longest time between two looks at memory."""
BURST_S = 0.01
UNKNOWN_S = 0.05
_WORST_FILL_BYTES_PER_S = 8 << 30
"""What a few cores can touch in fresh pages; earlyoom reckons with 6 GiB/s (its `main.c`)."""


def poll_interval_s(headroom_bytes: int | None, fill_rate_bytes_per_s: float | None) -> float:
    """The seconds until the next look at memory, `BURST_S` to `REST_S`.

    `headroom_bytes` is what is left to the nearest limit, 0 or less beyond it. `fill_rate_bytes_per_s` is how fast it shrinks
    as measured. Each is None where it is not known. The constant worst case guards against what has not been seen yet; the
    measured rate against overshooting by several polls (earlyoom#123): eight readings before the limit.
    """
    if headroom_bytes is None:
        return UNKNOWN_S
    worst_s = headroom_bytes / _WORST_FILL_BYTES_PER_S
    measured_s = headroom_bytes / fill_rate_bytes_per_s / 8 if fill_rate_bytes_per_s and fill_rate_bytes_per_s > 0 else REST_S
    return min(REST_S, max(BURST_S, min(worst_s, measured_s)))


def would_compute(worker: WorkerView, stance: Stance) -> bool:
    """Whether the worker computes, or would if heat let it: only then does its temperature say what computing does to it."""
    held_by_others = worker.held and HoldReason.HEAT not in stance.holds
    return worker.alive and not worker.frozen and not held_by_others


def without(memory: MemoryReading, bytes_: int) -> MemoryReading:
    """A reading as it will be once so much of the worker's tree has come back."""
    worker, available = memory.worker_bytes, memory.ram_available_bytes
    return msgspec.structs.replace(
        memory,
        worker_bytes=None if worker is None else max(0, worker - bytes_),
        ram_available_bytes=None if available is None else available + bytes_,
    )


@dataclass
class Guard:
    ladder: Ladder
    memory: MemoryReading
    """The newest reading."""
    disk: DiskReading
    """The newest reading."""
    proposals: tuple[Proposal, ...] = field(default=())
    """What the devices asked for last."""

    def look(self, now_s: float, memory: MemoryReading, worker: WorkerView) -> Stance:
        """One look at everything. A proposal to shrink counts in one look only, however often memory is read."""
        self.memory = memory
        stance = self.ladder.step(now_s, memory, self.disk, worker, self.proposals)
        self.proposals = tuple(replace(proposal, shrink=False) for proposal in self.proposals)
        return stance

    def is_short(self, memory: MemoryReading) -> bool:
        """Whether so much is used that nothing may grow any more."""
        use = memory_use(memory, self.ladder.limits)
        return use is not None and use > STOP_GROWING_USE

    def note_disk(self, disk: DiskReading, checkpoint_bytes: int | None) -> None:
        """Takes a new reading of the disk. `checkpoint_bytes` is the newest checkpoint's size. It is None where that is not
        known.
        """
        self.disk = disk
        self.ladder.disk_floor_bytes = disk_floor_bytes(checkpoint_bytes)

    def use_with(self, more_bytes: int, peak_bytes: int | None) -> float | None:
        """The part of memory that would be used, in the worse of the two views, if the worker's tree took `more_bytes` beside
        what it takes now, or beside `peak_bytes` where its steps take more. Returns None where that is not known.
        """
        memory, limits = self.memory, self.ladder.limits
        if memory.worker_bytes is None or memory.ram_available_bytes is None:
            return None
        more_bytes += max(0, (peak_bytes or 0) - memory.worker_bytes)
        available = memory.ram_available_bytes - more_bytes
        worker = memory.worker_bytes + more_bytes
        return memory_use(msgspec.structs.replace(memory, worker_bytes=worker, ram_available_bytes=available), limits)

    @property
    def is_calm(self) -> bool:
        """Whether memory has room for what can wait: starting a process, locking fresh pages."""
        return self.ladder.rung < Rung.HOLD

    @property
    def is_at_rest(self) -> bool:
        """Whether memory gives no reason at all to look sooner than in calm times."""
        return self.ladder.rung is Rung.GROW

    def look_again_in_s(self, *, worker_is_gone: bool, at_most_s: float) -> float:
        """The seconds until memory has to be looked at again. Without a worker nothing here could be slowed down or ended."""
        if worker_is_gone:
            return min(REST_S, at_most_s)
        needed_s = poll_interval_s(self.ladder.headroom_bytes(self.memory), self.ladder.fill_rate_bytes_per_s())
        return min(needed_s, at_most_s)
