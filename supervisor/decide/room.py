"""What the worker may hold of the host's memory now, as it is told: what the machine leaves it, without the noise. Pure.

It falls at once and rises after calm, a long one where others leave more, a short one where a limit was raised. Where memory
gets short nonetheless, the ladder acts (`ladder.py`).
"""

from __future__ import annotations

import msgspec

from memsup.supervisor.decide.readings import MemoryReading
from memsup.supervisor.decide.uses import STOP_GROWING_USE

WORTH_FRACTION = 1 / 16
"""Room that is less or more by this part is told. Who plans for 84 % of a room that is a sixteenth too large stays below the
90 % at which the ladder asks for less."""
MATTERS_FRACTION = 0.5
"""Room that others leave is told to a worker that holds this part of it or more: it grows by no more at once than it holds, and
who holds less need not hear of everything that others do."""
CALM_S = 20.0
"""Room that others happen to leave is told of when it has been there for this long."""
GIVEN_CALM_S = 2.0
"""Room that was given, by whoever raised a limit, is told of after this long: nobody takes it back in the next moment, but a
limit may be raised in several steps."""


class Room(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the worker was told that it may hold, and since when there has been more."""

    told_bytes: int | None = None
    """It is None before anything was read; the worker's own limit is what it was told first (`Welcome`)."""
    more_since_s: float | None = None
    """There has been more room since this time. It is None where there is none now."""
    least_bytes: int = 0
    """The least room that there has been since then."""
    granted_bytes: int | None = None
    """The least that limits have granted since it was told, whatever others take of that. It is None before anything was
    read."""

    def seen(self, now_s: float, room_bytes: int | None, limit_bytes: int, granted_bytes: int) -> Room:
        """What is told when so much room was seen. `limit_bytes` is the worker's own limit, the most that there can be, and
        `granted_bytes` (`granted_bytes`) what there would be if others took nothing. None of `room_bytes` means that it is not
        known, which changes nothing.
        """
        if room_bytes is None:
            return self
        told = limit_bytes if self.told_bytes is None else self.told_bytes
        if room_bytes < told * (1 - WORTH_FRACTION) or limit_bytes < told:
            return Room(told_bytes=room_bytes, granted_bytes=granted_bytes)
        least_granted = granted_bytes if self.granted_bytes is None else min(self.granted_bytes, granted_bytes)
        is_whole_again = told < limit_bytes <= room_bytes
        if room_bytes <= told * (1 + WORTH_FRACTION) and not is_whole_again:
            return Room(told_bytes=told, granted_bytes=least_granted)
        since_s = now_s if self.more_since_s is None else self.more_since_s
        least_bytes = room_bytes if self.more_since_s is None else min(self.least_bytes, room_bytes)
        if now_s - since_s >= (GIVEN_CALM_S if self.was_given(granted_bytes) else CALM_S):
            return Room(told_bytes=least_bytes, granted_bytes=granted_bytes)
        return Room(told_bytes=told, more_since_s=since_s, least_bytes=least_bytes, granted_bytes=least_granted)

    def was_given(self, granted_bytes: int) -> bool:
        """Whether limits were raised since this was told: `granted_bytes` is what they grant now."""
        return self.granted_bytes is not None and granted_bytes > self.granted_bytes * (1 + WORTH_FRACTION)


def granted_bytes(memory: MemoryReading, *, limit_bytes: int, reserve_bytes: int) -> int:
    """What limits grant the worker's tree: its own, or that of the container around it, which `memory` has as the machine's
    total. Others change nothing of it.
    """
    total = memory.ram_total_bytes
    return limit_bytes if total is None else min(limit_bytes, max(0, total - reserve_bytes))


def room_bytes(memory: MemoryReading, *, limit_bytes: int, reserve_bytes: int) -> int | None:
    """The limit of the worker's tree at which the two views of memory agree (`ladder.memory_use`): whoever grows to
    `STOP_GROWING_USE` of it comes to that part of its own limit, or of the machine without the reserve, and no further. As long
    as that does not matter it is the worker's own limit. Returns None where it is not known.
    """
    total, available, worker = memory.ram_total_bytes, memory.ram_available_bytes, memory.worker_bytes
    if total is None or available is None or worker is None:
        return None
    others_bytes = max(0, total - available - worker)
    left_bytes = max(0, int(total - reserve_bytes - others_bytes / STOP_GROWING_USE))
    return min(limit_bytes, left_bytes) if worker >= MATTERS_FRACTION * left_bytes else limit_bytes
