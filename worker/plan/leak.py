"""Tells apart memory that comes and goes with the micro-batches from a floor that rises step after step. Pure.

Covers finding such a leak and its slope. What fragments or fills caches rises as well, but ever more slowly; that is not taken
for a leak. What is done about one (a checkpoint and a new process, before memory runs short) is decided in `planner.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_BUCKETS = 64
"""Most buckets that are kept; an even number. Beyond it two make one: so slow leaks are seen as well as fast ones, in little
room."""
_LEAST_RISE_BYTES = 64 << 20


class Leak(NamedTuple):
    """A floor that rises and goes on rising."""

    rise_bytes: int
    """The least by which it has risen since this process began to train."""
    per_step_bytes: float
    """The slope of its last quarter."""


class Floor:
    """What a process holds between its steps, over its whole life."""

    def __init__(self) -> None:
        self._lowest: list[int] = []
        """The least that was held in each bucket of steps, the oldest bucket first."""
        self._bucket_steps = 1
        self._steps_in_last = 0

    def observe(self, held_bytes: int) -> None:
        """Takes in what is held at the beginning of a step; to be called once for each step."""
        if self._lowest and self._steps_in_last < self._bucket_steps:
            self._lowest[-1] = min(self._lowest[-1], held_bytes)
            self._steps_in_last += 1
            return
        if len(self._lowest) == _BUCKETS:
            pairs = zip(self._lowest[::2], self._lowest[1::2], strict=True)
            self._lowest = [min(pair) for pair in pairs]
            self._bucket_steps *= 2
        self._lowest.append(held_bytes)
        self._steps_in_last = 1

    def leak(self) -> Leak | None:
        """The leak that the steps so far show. None means that they show none.

        Each quarter of the time has to lie above the one before, and the last to have risen over the third by at least half of
        what the second rose over the first.
        """
        if len(self._lowest) < _BUCKETS // 2:
            return None
        quarter = len(self._lowest) // 4
        recent = self._lowest[-4 * quarter :]
        lowest = _lowest_of_quarters(recent)
        rise = lowest[-1] - lowest[0]
        # Within a quarter a leak lifts what comes later, so the lowest is one of few early values and as chancy as they are.
        # With the mean slope taken away all values of the quarter compete, and the lowest says where the quarter lies.
        slope = rise / (3 * quarter)
        levels = _lowest_of_quarters([held - slope * place for place, held in enumerate(recent)])
        first, second, third, last = (level + slope * quarter * number for number, level in enumerate(levels))
        steady = first < second < third < last and last - third >= (second - first) / 2
        if rise < _LEAST_RISE_BYTES or not steady:
            return None
        return Leak(int(rise), (last - third) / (quarter * self._bucket_steps))


def _lowest_of_quarters(values: Sequence[float]) -> list[float]:
    quarter = len(values) // 4
    return [min(values[place : place + quarter]) for place in range(0, len(values), quarter)]
