"""Is there room on the disk for another checkpoint? Pure; the free bytes are an argument.

A save is begun only if a second one of the same size fits as well: that room belongs to the emergency checkpoint, the one
written when training must stop now. First what is dispensable goes (`PRUNE`), then training pauses and tells (`PAUSE`).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from memsup.checkpoint.info import Info

SPARE_BYTES = 32 << 20
"""The room for what a file system needs beside the files, and for logs and ledger, which must not fail first."""


class Verdict(enum.Enum):
    FINE = "fine"
    PRUNE = "prune"
    PAUSE = "pause"


@dataclass(frozen=True)
class Room:
    verdict: Verdict
    free_bytes: int
    needed_bytes: int
    prune: tuple[Info, ...]
    """What is to be deleted, in this order; with `FINE` and `PAUSE` nothing."""
    text: str
    """One plain sentence with the numbers."""


def judge(free_bytes: int, save_bytes: int, *, dispensable: Sequence[Info] = (), emergency: bool = False) -> Room:
    """Whether there is room for a save of `save_bytes` in `free_bytes`. `dispensable` is what may be deleted for it, the least
    useful first. An `emergency` checkpoint may use the room that was kept for it.
    """
    needed_bytes = save_bytes * (1 if emergency else 2) + SPARE_BYTES
    purpose = "for the emergency checkpoint" if emergency else "for a checkpoint and an emergency one"
    numbers = f"{_size(free_bytes)} free, {_size(needed_bytes)} needed {purpose}"
    if free_bytes >= needed_bytes:
        return Room(Verdict.FINE, free_bytes, needed_bytes, (), f"There is room on the disk: {numbers}.")
    pruned: list[Info] = []
    gained_bytes = 0
    for info in dispensable:
        pruned.append(info)
        gained_bytes += info.bytes or 0
        if free_bytes + gained_bytes >= needed_bytes:
            text = f"The disk is getting full: {numbers}; {len(pruned)} dispensable checkpoints are deleted."
            return Room(Verdict.PRUNE, free_bytes, needed_bytes, tuple(pruned), text)
    text = f"The disk is too full for another checkpoint: {numbers}. {_size(needed_bytes - free_bytes)} more would do."
    return Room(Verdict.PAUSE, free_bytes, needed_bytes, (), text)


def _size(count_bytes: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count_bytes >= size:
            return f"{count_bytes / size:.1f} {unit}"
    return f"{count_bytes / 1000:.0f} kB"
