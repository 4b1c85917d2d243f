"""Which checkpoints may be deleted. Pure; `store.py` deletes, and only once a newer one is on disk and verified.

Decided from what lies in the folder and never from memory: after a restart nothing is forgotten and nothing piles up.
"""

from __future__ import annotations

from collections.abc import Sequence

from memsup.checkpoint.info import Info

LEAST_KEPT = 2
"""How many checkpoints are kept at least: were there one only, damage to it would cost the whole run."""


def deletable(newest_first: Sequence[Info], keep: int) -> list[Info]:
    """The sound checkpoints beyond the `keep` newest sound ones and the best one, oldest first.

    Those with a problem neither count as kept nor are deleted.
    """
    if keep < LEAST_KEPT:
        raise ValueError(f"at least {LEAST_KEPT} checkpoints are kept")
    sound = [info for info in newest_first if info.problem is None]
    best = best_of(sound)
    return [info for info in reversed(sound[keep:]) if info is not best]


def best_of(newest_first: Sequence[Info]) -> Info | None:
    """The checkpoint with the greatest metric. None means that none was evaluated.

    Of equally good ones that of the earliest step is the best, as for the training, which calls better only what is; of several
    of one step the newest is.
    """
    evaluated = [info for info in newest_first if info.problem is None and info.metric is not None]
    return max(evaluated, key=lambda info: (info.metric or 0.0, -(info.step or 0)), default=None)
