"""Whether the newest state is kept in memory between checkpoints, so that a worker which dies costs seconds of work; and how
often it is written. Pure.

The worker writes it into sealed memory (`worker/saving.py`), the supervisor holds it (`fence/in_memory.py`) and hands it to the
next worker, which goes on from it where it is newer than every checkpoint. It is never in place of a checkpoint on disk: it
ends with the supervisor. There are two of it while one is written. It takes memory and time, so it is kept while there is room
for two, and written as seldom as what it costs demands; when memory gets short it is given up first of all.
"""

from __future__ import annotations

from dataclasses import dataclass

from memsup.shared.settings import Settings
from memsup.supervisor.words import percent, size

EVERY_S, SELDOM_S = 20.0, 25.0
"""It is written after so many seconds of work, or, where that costs more than `FRACTION` of the time, up to `SELDOM_S`."""
FRACTION, MOST_FRACTION = 0.005, 0.01
"""The part of the time that writing takes: the first one as far as `SELDOM_S` allows, the second one whatever that means."""
COPIES = 2
"""While one is written, the one before lasts."""
MOST_USE = 0.75
"""With both, no more than this part of what the worker may have is used when it begins."""
GIVE_UP_USE = 0.85
"""With both, it is given up beyond this part: the ladder stops growth at `uses.STOP_GROWING_USE`."""
SETTLES_S = 60.0
"""A worker that was up for so long has found how large its micro-batches may be, and so what room they leave."""
AGAIN_S = 600.0
"""After it was given up it is not tried again for this long."""
_LEAST_CHANGE = 0.2


def asked_in(settings: Settings) -> str:
    """What `recovery.in_memory` comes to: a machine that has joined another one has no state of its own, and of a model that
    ranks share no process has all of it.
    """
    has_none = settings.nodes.join is not None or settings.training.shard
    return "off" if has_none else settings.recovery.in_memory


@dataclass(frozen=True, kw_only=True)
class Held:
    """The state that is held for the next worker."""

    step: int
    size_bytes: int
    work_s: float | None
    """The time that was computed from the newest checkpoint to it. It is None where that is not known."""


@dataclass(kw_only=True)
class InMemory:
    """What is decided about it in the life of a run under one supervisor."""

    asked: str = "auto"
    """The setting `recovery.in_memory`: auto, on (from the first checkpoint on) or off."""
    every_s: float | None = None
    """How often it is written, in seconds of work. It is None where it is not kept."""
    held: Held | None = None
    """It is None where none is held."""
    has_settled: bool = False
    """Whether it was kept before, in this life of the worker or in one before it."""
    not_before_s: float = 0.0
    told: str | None = None
    """Why there is no room for it, as is on record. It is None where there was room when that was looked at last."""

    def is_due(self, now_s: float, *, up_s: float) -> bool:
        """Whether it is to be kept, if there is room, beside a worker that is up for `up_s`."""
        is_settled = self.asked == "on" or self.has_settled or up_s >= SETTLES_S
        return self.every_s is None and is_settled and now_s >= self.not_before_s

    def begin(self) -> None:
        """Has it be kept from now on. What it costs is not known yet."""
        self.every_s, self.has_settled, self.told = EVERY_S, True, None

    def wrote(self, took_s: float) -> None:
        """Takes in how long the worker wrote the last one."""
        after_s = interval_s(took_s)
        if self.every_s is not None and abs(after_s - self.every_s) > _LEAST_CHANGE * self.every_s:
            self.every_s = after_s

    def needed_bytes(self, size_bytes: int | None) -> int | None:
        """What it will take besides what is held already, where one takes `size_bytes`; both are None where that is not
        known.
        """
        if size_bytes is None:
            return None
        return max(0, COPIES * size_bytes - (self.held.size_bytes if self.held is not None else 0))


def interval_s(took_s: float) -> float:
    """The seconds of work between two that take `took_s` each to be written."""
    return max(EVERY_S, min(SELDOM_S, took_s / FRACTION), took_s / MOST_FRACTION)


def why_no_room(use: float | None, needed_bytes: int, *, is_kept: bool) -> str | None:
    """Why there is no room for it, a clause, where with it the part `use` of all that may be had would be used. That is None
    where it is not known. Returns None where there is room.
    """
    most = GIVE_UP_USE if is_kept else MOST_USE
    if use is None:
        return "it is not known how much memory is used"
    if use <= most:
        return None
    return f"it needs {size(needed_bytes)}, and with that {percent(use)} of the memory would be used, more than {percent(most)}"
