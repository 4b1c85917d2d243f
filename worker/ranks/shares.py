"""Which rows of a step which rank computes, and how large the ranks' shares are. Pure.

A share is a part of a step's tokens, in thousandths. It stands in the plan before it takes effect, since it decides the bits;
which rows a step has does not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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


class Measured(NamedTuple):
    """How a rank has computed lately."""

    tokens_per_s: float
    beside_s: float
    """The seconds of a step in which it could not compute rows yet: until it has changed its parameters, and was told to."""


def better(shares: Shares, measured: Sequence[Measured], tokens: float) -> Shares | None:
    """The shares with which ranks that were `measured` like this are done at the same time, in steps of so many `tokens`. None
    means that they save too little.
    """
    if LEAST * len(measured) > WHOLE:  # of so many ranks each has hardly more than that anyway
        return None
    parts = [WHOLE * part for part in _done_together(measured, tokens)]
    found = [max(LEAST, int(part)) for part in parts]
    for rank in sorted(range(len(parts)), key=lambda rank: found[rank] - parts[rank])[: max(0, WHOLE - sum(found))]:
        found[rank] += 1  # to whom rounding took most
    found[found.index(max(found))] += WHOLE - sum(found)
    before, after = (done_after_s(each, measured, tokens) for each in (shares, found))
    return tuple(found) if after < before * (1 - WORTH_FRACTION) else None


def done_after_s(shares: Sequence[int], measured: Sequence[Measured], tokens: float) -> float:
    """The seconds after which the last rank is done with its share of so many `tokens`."""
    return max(pace.beside_s + tokens * share / WHOLE / pace.tokens_per_s for share, pace in zip(shares, measured, strict=True))


def _done_together(measured: Sequence[Measured], tokens: float) -> list[float]:
    """The part of so many `tokens` of each rank with which all are done in the same moment; a rank to which that would leave
    less than the least has the least.
    """
    least = LEAST / WHOLE
    parts = [least] * len(measured)
    others = set(range(len(measured)))
    while others:
        left = tokens * (1 - least * (len(measured) - len(others)))
        per_s = sum(measured[rank].tokens_per_s for rank in others)
        done_s = (left + sum(measured[rank].tokens_per_s * measured[rank].beside_s for rank in others)) / per_s
        for rank in others:
            parts[rank] = measured[rank].tokens_per_s * (done_s - measured[rank].beside_s) / tokens
        too_late = {rank for rank in others if parts[rank] < least}
        if not too_late:
            break
        for rank in too_late:
            parts[rank] = least
        others -= too_late
    return parts
