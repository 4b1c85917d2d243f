"""How much of the disk training leaves free: the one limit that `check` and `start` warn by and the ladder holds at. Pure."""

from __future__ import annotations

LEAST_FREE_BYTES = 64 << 20
"""Room for the records about a run, and for its last words."""


def disk_floor_bytes(checkpoint_bytes: int | None) -> int:
    """The least free disk with which training goes on: one more checkpoint has to have room, and the records about it.

    `checkpoint_bytes` is the size of the newest checkpoint. It is None where there is none yet, or its size is not known.
    """
    return LEAST_FREE_BYTES + (checkpoint_bytes or 0)
