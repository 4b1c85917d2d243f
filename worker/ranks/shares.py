"""Which rows of a step which rank computes, and how large the ranks' shares are. Pure.

A share is a part of a step's tokens, in thousandths. It stands in the plan before it takes effect, since it decides the bits;
which rows a step has does not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memsup.worker.plan.batches import Lengths, Rows

WHOLE = 1000
LEAST = 20
"""The smallest share: a rank that computes nothing would never be seen to have become faster."""
WORTH_FRACTION = 0.05
"""The part of a step's time that other shares have to save: they cost other bits."""

Shares = tuple[int, ...]


def equal(ranks: int) -> Shares:
    """The same share for each of so many ranks."""
    return tuple(WHOLE * (rank + 1) // ranks - WHOLE * rank // ranks for rank in range(ranks))


def shared_out(rows: Rows, lengths: Lengths, shares: Shares) -> list[Rows]:
    """The rows of each rank, of a step's `rows` with these `lengths`: from the longest on, each goes to the rank that would be
    done with it first. A single rank has them as they are.
    """
    if len(shares) == 1:
        return [rows]
    taken = [0.0] * len(shares)
    places: list[list[int]] = [[] for _ in shares]
    for place in np.lexsort((rows, -lengths.astype(np.int64))).tolist():
        done = [(tokens + int(lengths[place])) / share for tokens, share in zip(taken, shares, strict=True)]
        rank = done.index(min(done))
        taken[rank] += int(lengths[place])
        places[rank].append(place)
    return [rows[np.array(sorted(chosen), dtype=np.int64)] for chosen in places]


def better(shares: Shares, tokens_per_s: Sequence[float]) -> Shares | None:
    """The shares with which ranks of this speed are done at the same time. None means that they save too little."""
    whole = sum(tokens_per_s)
    found = [max(LEAST, round(WHOLE * speed / whole)) for speed in tokens_per_s]
    found[found.index(max(found))] += WHOLE - sum(found)
    if min(found) < LEAST:  # of so many ranks each has hardly more than that anyway
        return None
    before, after = (_slowest(each, tokens_per_s) for each in (shares, found))
    return tuple(found) if after < before * (1 - WORTH_FRACTION) else None


def _slowest(shares: Sequence[int], tokens_per_s: Sequence[float]) -> float:
    return max(share / speed for share, speed in zip(shares, tokens_per_s, strict=True))
