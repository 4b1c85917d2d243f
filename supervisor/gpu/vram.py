"""GPU memory: when the worker must take less, because it or somebody else fills the device. Pure.

PyTorch keeps freed memory in a cache, so that a full device is its normal state and says little: what counts is what the worker
*holds* (allocated, and its context), against what others leave it. So another program that starts at night, a game, a browser,
makes the worker smaller instead of killing either. What the worker does when it is told to shrink (halve the micro-batch and
give the cache back) is its own; the effective batch stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from memsup.supervisor.readings import GpuReading
from memsup.supervisor.words import size

CALM_FRACTION = 0.85
"""Of its allowance: below, the worker may grow (again, after `CALM_S`)."""
CALM_S = 30.0
SETTLE_S = 10.0
"""A halved micro-batch shows in memory after this time; only then is it halved again."""
NEWCOMER_BYTES = 256 << 20
"""Others who took this much more, on a device that is full, want more than they got."""
CONTEXT_BYTES = 400 << 20
"""CUDA's own share of a process, where the driver does not tell what the process holds in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VramDecision:
    shrink: bool = False
    """Asked once, then not before `SETTLE_S`."""
    may_grow: bool = True
    reason: str = ""
    allowance_bytes: int | None = None
    """What others leave the worker of its share, its context included."""


@dataclass
class VramControl:
    """Follows the GPU that the worker computes on."""

    vram_fraction: float = 0.95
    _others_bytes: int | None = None
    """Of others, when the worker's size last fitted."""
    _shrunk_at_s: float | None = None
    _tight_at_s: float | None = None

    def step(self, now_s: float, gpu: GpuReading, allocated_bytes: int | None, reserved_bytes: int | None) -> VramDecision:
        """`allocated_bytes` and `reserved_bytes` are the worker's own figures. What is not known neither shrinks nor grows."""
        total, used = gpu.total_bytes, gpu.used_bytes
        if total is None or used is None or allocated_bytes is None or reserved_bytes is None:
            return VramDecision(may_grow=False)
        process = gpu.worker_bytes if gpu.worker_bytes is not None else reserved_bytes + CONTEXT_BYTES
        others = max(0, used - process)
        holds = max(allocated_bytes, process - (reserved_bytes - allocated_bytes))
        allowance = max(0, int(self.vram_fraction * total) - others)
        if self._others_bytes is None or others < self._others_bytes:
            self._others_bytes = others
        newcomers = others - self._others_bytes if others - self._others_bytes >= NEWCOMER_BYTES else 0

        tight = holds > allowance or (newcomers > 0 and used > self.vram_fraction * total)
        if tight or holds > CALM_FRACTION * allowance:
            self._tight_at_s = now_s
        shrink = tight and (self._shrunk_at_s is None or now_s - self._shrunk_at_s >= SETTLE_S)
        if shrink:
            self._shrunk_at_s, self._others_bytes = now_s, others
        return VramDecision(
            shrink=shrink,
            may_grow=self._tight_at_s is None or now_s - self._tight_at_s >= CALM_S,
            reason=_reason(gpu.index, holds, allowance, newcomers) if tight else "",
            allowance_bytes=allowance,
        )


def _reason(index: int, holds: int, allowance: int, newcomers: int) -> str:
    left = f"the worker holds {size(holds)} of the {size(allowance)} that others leave it on GPU {index}"
    return f"{left}, {size(newcomers)} less than before" if newcomers else left
