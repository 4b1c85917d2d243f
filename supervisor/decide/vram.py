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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from memsup.shared.settings import Share
from memsup.supervisor.decide.readings import GpuReading
from memsup.supervisor.words import percent, size

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
BACK_AFTER_S = 10.0
"""A card that was left to others is taken back when there has been room on it for this long."""
SPILLS_FROM_FRACTION, SPILLED_SPEED, SPILLED_FOR_S = 0.97, 0.5, 60.0
"""A device is so full, and training so slow beside its best, for so long, where memory has been moved into RAM."""
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
    _gpu_index: int = 0
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
        self._context_bytes, self._gpu_index = context, gpu.index
        self._crowded = _crowded(gpu.index, others, others - self._least_others_bytes)
        return VramDecision(
            shrink=shrink,
            may_grow=self._tight_at_s is None or now_s - self._tight_at_s >= CALM_S,
            reason=_reason(gpu.index, holds, allowance, newcomers) if tight else "",
            allowance_bytes=allowance,
            limit_bytes=self._soft_limit(now_s, max(0, allowance - context)),
            crowded=self._crowded,
        )

    def crowded_by(self, others_bytes: int) -> str | None:
        """How much more others hold than the least they held, in one clause, where a worker that found no room saw that they
        and its own context hold `others_bytes` of the device. It is None where that is less than a newcomer would hold, or
        where it was never known what others held before.
        """
        if self._least_others_bytes is None:
            return None
        others = max(0, others_bytes - self._context_bytes)
        return _crowded(self._gpu_index, others, others - self._least_others_bytes)

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


@dataclass(frozen=True, slots=True)
class CardDecision:
    leave: bool = False
    """Whether the program is to be off its card."""
    reason: str = ""


@dataclass
class CardControl:
    """Follows the GPUs of a program that takes no orders: it cannot be made smaller, so where somebody else needs its card it
    leaves that as a whole (`run/card.py`), and comes back when there is room for all that it had.
    """

    limit: Share | int
    """`limits.vram`. A part of the device says from where on it is full, so that one that may have all makes way for nobody."""
    _held: dict[int, int] = field(default_factory=dict)
    """What it held last on each GPU, by index."""
    _fitted_others: dict[int, int] = field(default_factory=dict)
    """What others held on each when all of them last fitted there."""
    _others: dict[int, deque[int]] = field(default_factory=dict)
    _room_since_s: float | None = None
    _made_way: bool = False
    """Whether it is away, or is to go, for others."""
    _last: CardDecision = field(default_factory=CardDecision)

    def step(self, now_s: float, gpus: Iterable[GpuReading], *, on_card: bool, moves: bool) -> CardDecision:
        """Whether the program is to be off its card. While it `moves`, what was decided last holds: nobody can tell whose the
        memory is.
        """
        if moves:
            self._others.clear()
        elif on_card:
            self._last = self._while_there(gpus)
        else:
            self._last = self._while_away(now_s, {gpu.index: gpu for gpu in gpus})
        return self._last

    @property
    def _full_fraction(self) -> float:
        return self.limit.fraction if isinstance(self.limit, Share) else FULL_FRACTION

    def _while_there(self, gpus: Iterable[GpuReading]) -> CardDecision:
        self._room_since_s, wants = None, ""
        for gpu in gpus:
            total, used, own = gpu.total_bytes, gpu.used_bytes, gpu.worker_bytes
            if total is None or used is None or not own:
                continue
            looks = self._others.setdefault(gpu.index, deque(maxlen=2))
            looks.append(max(0, used - own))
            others, self._held[gpu.index] = min(looks), own
            if len(looks) < 2:
                continue
            is_full = used > self._full_fraction * total
            fitted = min(others, self._fitted_others.get(gpu.index, others)) if is_full else others
            self._fitted_others[gpu.index], more = fitted, others - fitted
            if is_full and more >= NEWCOMER_BYTES:
                wants = f"{_crowded(gpu.index, others, more)}, and it is full"
        self._made_way = bool(wants)
        return CardDecision(bool(wants), wants)

    def _while_away(self, now_s: float, gpus: Mapping[int, GpuReading]) -> CardDecision:
        missing = ""
        for index, held in self._held.items():
            gpu = gpus.get(index)
            if gpu is None or gpu.total_bytes is None or gpu.used_bytes is None:
                missing = missing or (f"what is free on GPU {index} is not known" if self._made_way else "")
            elif (free := int(self._full_fraction * gpu.total_bytes) - gpu.used_bytes) < held:
                missing = f"it needs {size(held)} of GPU {index}, and other programs leave {size(max(0, free))}"
        if missing:
            self._room_since_s = None
            return CardDecision(True, missing)
        if self._room_since_s is None:
            self._room_since_s = now_s
        waits = self._made_way and now_s - self._room_since_s < BACK_AFTER_S
        self._fitted_others.clear()  # what they hold when it is back is what it fits beside
        return CardDecision(waits, "other programs have just left the card" if waits else "")


@dataclass
class SpillWatch:
    """Sees by its speed that a worker's GPU memory lies in RAM, where the driver puts it on WSL instead of refusing it."""

    _best: float = 0.0
    """The best speed so far, in samples a second."""
    _since_s: float | None = None

    def step(self, now_s: float, gpu: GpuReading, samples_per_s: float | None) -> str | None:
        """The sentence for a person while it is so. Returns None while it is not, or not known."""
        if samples_per_s is None or gpu.total_bytes is None or gpu.used_bytes is None:
            return None
        self._best = max(self._best, samples_per_s)
        if gpu.used_bytes < SPILLS_FROM_FRACTION * gpu.total_bytes or samples_per_s >= SPILLED_SPEED * self._best:
            self._since_s = None
            return None
        self._since_s = now_s if self._since_s is None else self._since_s
        if now_s - self._since_s < SPILLED_FOR_S:
            return None
        return (
            f"GPU {gpu.index} is full, and training runs at {percent(samples_per_s / self._best)} of its best speed: on WSL "
            "the driver moves into RAM what does not fit. Close what else uses the GPU, or give the worker less: "
            "--set limits.vram=80%"
        )


def _reason(index: int, holds: int, allowance: int, newcomers: int) -> str:
    left = f"the worker holds {size(holds)} of the {size(allowance)} that others leave it on GPU {index}"
    return f"{left}, {size(newcomers)} less than before" if newcomers else left


def _crowded(index: int, others: int, more: int) -> str | None:
    if more < NEWCOMER_BYTES:
        return None
    return f"other programs hold {size(others)} of GPU {index}, {size(more)} more than before"
