"""What a worker gave back when it ended: RAM by the kernel's count of its fence, VRAM by the device's own count. Pure.

A driver takes its time to free a dead process's memory, so the proof waits for it a little. Where a reading from before or
after is missing, what came back is unknown, and the ledger says so. Other programs' memory on the same device may change in
between; more than the worker held is never claimed. Who ends the worker, and what waits for this, is `lifecycle.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from memsup.shared.messages import WorkerMemory
from memsup.supervisor.decide.readings import GpuReading, MemoryReading
from memsup.supervisor.decide.vram import CONTEXT_BYTES
from memsup.supervisor.words import size

PROOF_WITHIN_S = 5.0
"""The device has this many seconds to show that the memory is back."""
VRAM_SLACK_BYTES, RAM_SLACK_BYTES = 256 << 20, 64 << 20
"""Others may take this much GPU memory meanwhile, and a cgroup without processes keeps up to this much RAM."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """A worker's memory when it was last seen at work. A field that is None is not known, or there is none."""

    ram_bytes: int | None = None
    vram_bytes: int | None = None
    used_bytes: Mapping[int, int] = field(default_factory=dict)
    """What was in use on each of its GPUs, by index: the worker's and others' together."""


@dataclass(frozen=True, kw_only=True)
class GivenBack:
    """What a worker gave back. A field that is None is not known, or there was none."""

    ram_bytes: int | None = None
    vram_bytes: int | None = None
    vram_unknown: bool = False
    """The worker held GPU memory, and the device could not be asked afterwards."""
    missing: tuple[str, ...] = ()
    """These sentences tell a person what did not come back."""

    @property
    def text(self) -> str:
        """What came back, in one clause; empty where nothing is known."""
        parts = [] if self.ram_bytes is None else [f"{size(self.ram_bytes)} of RAM"]
        if self.vram_bytes is not None:
            parts.append(f"{size(self.vram_bytes)} of VRAM by the device's own count")
        said = f"given back: {' and '.join(parts)}" if parts else ""
        if self.vram_unknown:
            said += f"{'; ' if said else ''}how much VRAM came back is not known"
        return said


NOTHING_KNOWN = GivenBack()


def held_by(memory: MemoryReading, gpus: Iterable[GpuReading], own: WorkerMemory | None) -> Held:
    """What the worker holds now. `gpus` are its own; `own` is what it says of itself, for where the driver does not tell."""
    gpus = tuple(gpus)
    shares = [gpu.worker_bytes for gpu in gpus if gpu.worker_bytes]
    vram = sum(shares) if shares else None
    if vram is None and own is not None and own.cuda_reserved_bytes:
        vram = own.cuda_reserved_bytes + CONTEXT_BYTES
    used = {gpu.index: gpu.used_bytes for gpu in gpus if gpu.used_bytes is not None}
    return Held(ram_bytes=memory.worker_bytes, vram_bytes=vram, used_bytes=used)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The proof of what a worker gave back, while the device takes its time."""

    held: Held
    ram_left_bytes: int | None
    """What was still in the worker's fence when every process was gone. It is None where that could not be read."""
    since_s: float
    """Every process was gone at this time."""
    standby_bytes: int = 0
    """What of that is not the worker's, but of the process that stands by in the same fence."""

    def step(self, now_s: float, gpus: Iterable[GpuReading]) -> GivenBack | None:
        """What the worker gave back. Returns None while the device is still to be asked, or takes its time."""
        held, freed = self.held.vram_bytes, self._freed_bytes(gpus)
        if held is None:
            return self._given_back(vram_bytes=None)
        if freed is not None and freed >= held - VRAM_SLACK_BYTES:
            return self._given_back(vram_bytes=max(0, min(freed, held)))
        if now_s - self.since_s < PROOF_WITHIN_S:
            return None
        if freed is None:
            return self._given_back(vram_bytes=None, vram_unknown=True)
        freed = max(0, freed)
        why = "the driver keeps it, or another program took it. Look at: nvidia-smi"
        sentence = (
            f"Of the {size(held)} of VRAM that the worker held only {size(freed)} came back by the device's own count: {why}"
        )
        return self._given_back(vram_bytes=freed, missing=sentence)

    def _freed_bytes(self, gpus: Iterable[GpuReading]) -> int | None:
        after = {gpu.index: gpu.used_bytes for gpu in gpus if gpu.at_s > self.since_s}
        freed = 0
        for index, before in self.held.used_bytes.items():
            left = after.get(index)
            if left is None:
                return None
            freed += before - left
        return freed if self.held.used_bytes else None

    def _given_back(self, *, vram_bytes: int | None, vram_unknown: bool = False, missing: str | None = None) -> GivenBack:
        held, left = self.held.ram_bytes, self.ram_left_bytes
        sentences = [] if missing is None else [missing]
        if left is not None and (kept := left - self.standby_bytes) > RAM_SLACK_BYTES:
            why = "although its processes are gone: files in /dev/shm, perhaps."
            sentences.append(f"{size(kept)} of the worker's RAM did not come back {why}")
        return GivenBack(
            ram_bytes=None if held is None or left is None else max(0, held - left),
            vram_bytes=vram_bytes,
            vram_unknown=vram_unknown,
            missing=tuple(sentences),
        )
