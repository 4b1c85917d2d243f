"""GPU memory: when the worker must take less, because it or somebody else fills the device. Pure.

PyTorch keeps freed memory in a cache, so that a full device is its normal state and says little: what counts is what the worker
*holds* (allocated, and its context), against what others leave it. So another program that starts at night, a game, a browser,
makes the worker smaller instead of killing either: it is told to shrink, and from when on torch is to raise its own error,
which the worker catches, rather than take what others need. What the worker does about it (halve the micro-batch, give its
cache back) is its own; the effective batch stays as it is.

The worker's figures come with its heartbeats and are up to a second older than the device's. So memory that it has just taken
looks like others' for a moment, or like its CUDA context: others count once they were there in two looks, and the context is
the middle of the last ones.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from memsup.shared.settings import Share
from memsup.supervisor.decide.readings import GpuReading
from memsup.supervisor.words import size

FULL_FRACTION = 0.95
"""A device is full when more than this part of it is used, unless `limits.vram` names a part."""
CALM_FRACTION = 0.85
"""Below this part of its allowance the worker may grow (again, after `CALM_S`)."""
CALM_S = 30.0
SETTLE_S = 10.0
"""A halved micro-batch shows in memory after this time; only then is it halved again."""
NEWCOMER_BYTES = 256 << 20
"""Others who took this much more, on a device that is full, want more than they got."""
CONTEXT_BYTES = 400 << 20
"""What CUDA itself takes in a process, assumed where the driver does not tell what the process holds in all."""
LIMIT_STEP_BYTES = 128 << 20
"""The soft limit follows changes of at least this much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VramDecision:
    shrink: bool = False
    """Whether the micro-batch is to be halved; it is asked once, and again after `SETTLE_S`."""
    may_grow: bool = True
    reason: str = ""
    allowance_bytes: int | None = None
    """What others leave the worker of its share, its context included. It is None where that is not known."""
    limit_bytes: int | None = None
    """What torch may reserve: the least that others left it in the last `CALM_S`. It is None where that is not known yet."""
    crowded: str | None = None
    """How much more others hold than the least they held, in one clause. It is None while that is less than a newcomer would
    hold."""


@dataclass
class VramControl:
    """Follows the GPU that the worker computes on."""

    limit: Share | int
    """`limits.vram`: the part of the device that may be used by everybody together, or the bytes that the worker may hold."""
    _others_bytes: int | None = None
    """What others held when the worker's size last fitted. It is None where that has not been seen to fit."""
    _least_others_bytes: int | None = None
    _others: deque[int] = field(default_factory=lambda: deque(maxlen=2))
    _contexts: deque[int] = field(default_factory=lambda: deque(maxlen=9))
    _room: deque[tuple[float, int]] = field(default_factory=deque)
    """What was left to torch, ordered by time and rising, so that the first is the least of the last `CALM_S`."""
    _context_bytes: int = CONTEXT_BYTES
    _limit_bytes: int | None = None
    _crowded: str | None = None
    _shrunk_at_s: float | None = None
    _tight_at_s: float | None = None

    def step(self, now_s: float, gpu: GpuReading, allocated_bytes: int | None, reserved_bytes: int | None) -> VramDecision:
        """What the worker has to do now. `allocated_bytes` and `reserved_bytes` are its own figures; where something is not
        known it neither shrinks nor grows.
        """
        total, used = gpu.total_bytes, gpu.used_bytes
        if total is None or used is None or allocated_bytes is None or reserved_bytes is None:
            return VramDecision(may_grow=False, limit_bytes=self._limit_bytes, crowded=self._crowded)
        process = gpu.worker_bytes if gpu.worker_bytes is not None else reserved_bytes + CONTEXT_BYTES
        self._contexts.append(max(0, process - reserved_bytes))
        context = sorted(self._contexts)[len(self._contexts) // 2]
        self._others.append(max(0, used - process))
        others = min(self._others)
        holds = allocated_bytes + context
        allowance = self._allowance_bytes(total, others)
        if self._others_bytes is None or others < self._others_bytes:
            self._others_bytes = others
        if self._least_others_bytes is None or others < self._least_others_bytes:
            self._least_others_bytes = others
        newcomers = others - self._others_bytes if others - self._others_bytes >= NEWCOMER_BYTES else 0

        full_fraction = self.limit.fraction if isinstance(self.limit, Share) else FULL_FRACTION
        tight = holds > allowance or (newcomers > 0 and used > full_fraction * total)
        if tight or holds > CALM_FRACTION * allowance:
            self._tight_at_s = now_s
        shrink = tight and (self._shrunk_at_s is None or now_s - self._shrunk_at_s >= SETTLE_S)
        if shrink:
            self._shrunk_at_s, self._others_bytes = now_s, others
        self._context_bytes = context
        self._crowded = _crowded(gpu.index, others, others - self._least_others_bytes)
        return VramDecision(
            shrink=shrink,
            may_grow=self._tight_at_s is None or now_s - self._tight_at_s >= CALM_S,
            reason=_reason(gpu.index, holds, allowance, newcomers) if tight else "",
            allowance_bytes=allowance,
            limit_bytes=self._soft_limit(now_s, max(0, allowance - context)),
            crowded=self._crowded,
        )

    def crowded_by(self, gpu_index: int, others_bytes: int) -> str | None:
        """How much more others hold than the least they held, in one clause, where a worker that found no room saw that they
        and its own context hold `others_bytes` of the device. It is None where that is less than a newcomer would hold, or
        where it was never known what others held before.
        """
        if self._least_others_bytes is None:
            return None
        others = max(0, others_bytes - self._context_bytes)
        return _crowded(gpu_index, others, others - self._least_others_bytes)

    def _allowance_bytes(self, total: int, others: int) -> int:
        """What is left to the worker, its context included. Others, and the driver's own reserve, which looks like one of them,
        take nothing of a limit in bytes while there is room beside them.
        """
        if isinstance(self.limit, Share):
            return max(0, int(self.limit.fraction * total) - others)
        return max(0, min(self.limit, total - others))

    def _soft_limit(self, now_s: float, room_bytes: int) -> int:
        """What torch may reserve, which falls at once and rises after calm."""
        while self._room and self._room[-1][1] >= room_bytes:
            self._room.pop()
        self._room.append((now_s, room_bytes))
        while now_s - self._room[0][0] > CALM_S:
            self._room.popleft()
        least = self._room[0][1]
        if self._limit_bytes is None or abs(least - self._limit_bytes) >= LIMIT_STEP_BYTES:
            self._limit_bytes = least
        return self._limit_bytes


def _reason(index: int, holds: int, allowance: int, newcomers: int) -> str:
    left = f"the worker holds {size(holds)} of the {size(allowance)} that others leave it on GPU {index}"
    return f"{left}, {size(newcomers)} less than before" if newcomers else left


def _crowded(index: int, others: int, more: int) -> str | None:
    if more < NEWCOMER_BYTES:
        return None
    return f"other programs hold {size(others)} of GPU {index}, {size(more)} more than before"
