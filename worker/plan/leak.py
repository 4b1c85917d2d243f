"""Told apart: memory that comes and goes with the micro-batches, and a floor that rises step after step. Pure.

Covers finding such a leak and its slope. What fragments or fills caches rises as well, but ever more slowly; that is not taken
for a leak. What is done about one (a checkpoint and a new process, before memory runs short) is decided in `planner.py`.
"""

from __future__ import annotations

from typing import NamedTuple

_BUCKETS = 64
"""Even. Once there are so many, two make one: so slow leaks are seen as well as fast ones, in little room."""
_LEAST_RISE_BYTES = 64 << 20


class Leak(NamedTuple):
    rise_bytes: int
    """At least, since this process began to train."""
    per_step_bytes: float
    """Lately."""


class Floor:
    """What is held between steps, over the whole life of a process."""

    def __init__(self) -> None:
        self._lowest: list[int] = []
        """Of each bucket, oldest first."""
        self._bucket_steps = 1
        self._steps_in_last = 0

    def observe(self, held_bytes: int) -> None:
        """At the beginning of each step."""
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
        """None: there is none to be seen.

        The lowest of each quarter of the time is above that of the quarter before, and the second half rose by at least half of
        what the first did.
        """
        if len(self._lowest) < _BUCKETS // 2:
            return None
        quarter = len(self._lowest) // 4
        first, second, third, last = (min(self._lowest[-(4 - i) * quarter :][:quarter]) for i in range(4))
        rise = last - first
        steady = first < second < third < last and last - third >= (second - first) / 2
        if rise < _LEAST_RISE_BYTES or not steady:
            return None
        return Leak(rise, (last - third) / (quarter * self._bucket_steps))
